"""Bundles that every reader must refuse: one change each of a small valid bundle."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save_file

from benchmarks.conformance_kit.bundles import sealed, write
from benchmarks.conformance_kit.odd_archives import EDITS
from benchmarks.conformance_kit.words import FORWARD, GAIN, RETURN, ema, trained
from ttac.runtime.bundle import pack

VERSION, DAMAGED = "runtime-missing", "verification"
"""Kinds of errors: the bundle needs another reader; the bundle is not valid."""

BACKWARD, UPDATE = {"run": "backward"}, {"run": "update"}
DEFERRED = {**UPDATE, "deferred": True}


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set the entry at a path such as `state/tensors/0/role`; `...` deletes it."""

    def change(manifest: dict[str, Any]) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        place: Any = manifest
        for part in parents:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value

    return change


def _step(*words: Any) -> Callable[[dict[str, Any]], None]:
    return _set("programs/step", list(words))


def _deep(levels: int) -> Any:
    return {"when": "loss", "then": [_deep(levels - 1)] if levels else [{"reset": "all"}]}


MANIFESTS: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "format-newer": (VERSION, _set("format", 4)),
    "format-older": (VERSION, _set("format", 2)),
    "format-text": (DAMAGED, _set("format", "3")),
    "format-true": (DAMAGED, _set("format", True)),
    "key-unknown": (DAMAGED, _set("kernels", [])),
    "key-missing": (DAMAGED, _set("batch", ...)),
    "word-unknown": (VERSION, _step({"while": "loss", "do": []}, RETURN)),
    "word-two": (VERSION, _step({"run": "forward", "repeat": 2}, RETURN)),
    "word-key-unknown": (DAMAGED, _step({"run": "forward", "rowz": 2}, RETURN)),
    "word-no-return": (DAMAGED, _step(FORWARD, BACKWARD)),
    "word-return-in-one-branch": (DAMAGED, _step(FORWARD, BACKWARD, {"when": "loss", "then": [RETURN]})),
    "word-after-return": (DAMAGED, _step(FORWARD, RETURN, BACKWARD)),
    "word-return-two": (DAMAGED, _step(FORWARD, {"return": ["logits", "h"]})),
    "word-graph-unknown": (DAMAGED, _step({"run": "backwards"}, RETURN)),
    "word-value-unknown": (DAMAGED, _step(FORWARD, {"when": "loss", "then": []}, RETURN)),
    "word-value-in-one-branch": (
        DAMAGED,
        _step(FORWARD, {"when": "scale", "then": [BACKWARD]}, UPDATE, RETURN),
    ),
    "word-read-before-run": (DAMAGED, _step(BACKWARD, FORWARD, UPDATE, RETURN)),
    "word-only-unknown": (DAMAGED, _step({**FORWARD, "only": ["logit"]}, RETURN)),
    "word-feed-unknown": (DAMAGED, _step({**FORWARD, "feed": {"y": "x"}}, RETURN)),
    "word-rows-zero": (DAMAGED, _step({**FORWARD, "rows": 0}, RETURN)),
    "word-repeat-zero": (DAMAGED, _step({"repeat": 0, "do": []}, FORWARD, RETURN)),
    "word-repeat-fraction": (DAMAGED, _step({"repeat": 1.5, "do": []}, FORWARD, RETURN)),
    "word-return-in-repeat": (DAMAGED, _step(FORWARD, {"repeat": 2, "do": [RETURN]}, RETURN)),
    "word-too-many": (DAMAGED, _step({"repeat": 101, "do": [{"repeat": 99, "do": [FORWARD]}]}, RETURN)),
    "word-too-deep": (DAMAGED, _step(FORWARD, BACKWARD, _deep(20), RETURN)),
    "word-reset-unknown": (DAMAGED, _step(FORWARD, {"reset": ["scales"]}, RETURN)),
    "word-deferred-false": (DAMAGED, _step(FORWARD, BACKWARD, {**UPDATE, "deferred": False}, RETURN)),
    "word-deferred-only": (DAMAGED, _step(FORWARD, BACKWARD, {**DEFERRED, "only": ["scale_next"]}, RETURN)),
    "word-deferred-in-repeat": (DAMAGED, _step(FORWARD, BACKWARD, {"repeat": 1, "do": [DEFERRED]}, RETURN)),
    "word-deferred-state-read": (DAMAGED, _step(FORWARD, BACKWARD, DEFERRED, FORWARD, RETURN)),
    "word-deferred-state-reset": (DAMAGED, _step(FORWARD, BACKWARD, DEFERRED, {"reset": "all"}, RETURN)),
    "word-deferred-no-state": (DAMAGED, _step(FORWARD, {**BACKWARD, "deferred": True}, RETURN)),
    "graph-key-unknown": (DAMAGED, _set("graphs/forward/kernel", "x")),
    "graph-state-unknown": (DAMAGED, _set("graphs/update/state/scale_next", "scales")),
    "graph-output-unknown": (DAMAGED, _set("graphs/backward/stats", {"losses": "loss"})),
    "graph-stat-counted": (DAMAGED, _set("graphs/backward/stats/loss", "steps")),
    "graph-level-unknown": (DAMAGED, _set("graphs/forward/optimization", "most")),
    "graph-file-unlisted": (DAMAGED, _set("graphs/forward/file", "other.onnx")),
    "graph-file-outside": (DAMAGED, _set("graphs/forward/file", "../forward.onnx")),
    "graph-input-other-dtype": (DAMAGED, _set("inputs/0/dtype", "float64")),
    "graph-input-other-shape": (DAMAGED, _set("inputs/0/shape", ["N", 4])),
    "state-dtype-unknown": (DAMAGED, _set("state/tensors/0/dtype", "bfloat16")),
    "state-dtype-other": (DAMAGED, _set("state/tensors/0/dtype", "float64")),
    "state-shape-other": (DAMAGED, _set("state/tensors/0/shape", [3])),
    "state-role-unknown": (DAMAGED, _set("state/tensors/0/role", "weight")),
    "state-tensor-missing": (DAMAGED, _set("state/tensors/0/name", "scales")),
    "state-tensor-twice": (DAMAGED, _set("state/tensors/1/name", "scale")),
    "input-without-samples": (DAMAGED, _set("inputs/0/shape", [4, 3])),
    "input-open-size": (DAMAGED, _set("inputs/0/shape", ["N", "width"])),
    "output-none": (DAMAGED, _set("outputs", [])),
    "output-twice": (DAMAGED, _set("outputs/0/shape", ["N", "N"])),
    "output-negative": (DAMAGED, _set("outputs/0/shape", ["N", -2])),
    "head-objectness-number": (DAMAGED, _set("head/objectness", 1)),
    "head-mask-of-no-input": (DAMAGED, _set("head/mask", {"input": "none", "counts": True})),
    "head-mask-number": (DAMAGED, _set("head/mask", {"input": "x", "counts": 1})),
    "head-boxes-of-no-output": (DAMAGED, _set("head/boxes", "none")),
    "sizes-no-list": (DAMAGED, _set("sizes", {})),
    "sizes-zero": (DAMAGED, _set("sizes", [{"name": "width", "largest": 0, "multiple": 1}])),
    "sizes-no-multiple": (DAMAGED, _set("sizes", [{"name": "width", "largest": 5, "multiple": 2}])),
    "sizes-smallest-zero": (DAMAGED, _set("sizes", [{"name": "width", "largest": 4, "multiple": 1, "smallest": 0}])),
    "sizes-smallest-no-multiple": (
        DAMAGED,
        _set("sizes", [{"name": "width", "largest": 4, "multiple": 2, "smallest": 3}]),
    ),
    "sizes-smallest-too-large": (
        DAMAGED,
        _set("sizes", [{"name": "width", "largest": 4, "multiple": 1, "smallest": 5}]),
    ),
    "sizes-of-samples": (DAMAGED, _set("sizes", [{"name": "N", "largest": 4, "multiple": 1}])),
    "sizes-twice": (DAMAGED, _set("sizes", [{"name": "width", "largest": 4, "multiple": 1}] * 2)),
    "sizes-key-unknown": (DAMAGED, _set("sizes", [{"name": "width", "largest": 4, "multiple": 1, "least": 1}])),
    "sizes-of-another-name": (
        DAMAGED,
        lambda manifest: manifest.update(
            inputs=[{"name": "x", "dtype": "float32", "shape": ["N", "width"]}],
            sizes=[{"name": "height", "largest": 4, "multiple": 1}],
        ),
    ),
    "head-kind-unknown": (DAMAGED, _set("head/kind", "class")),
    "head-output-unknown": (DAMAGED, _set("head/output", "probabilities")),
    "head-axis-samples": (DAMAGED, _set("head/axis", 0)),
    "batch-reversed": (DAMAGED, _set("batch", {"planned": 2, "smallest": 3})),
    "batch-too-large": (DAMAGED, _set("batch/planned", 2**31)),
    "batch-float": (DAMAGED, _set("batch/planned", 4.0)),
    "threads-too-many": (DAMAGED, _set("target/threads", 1025)),
    "engine-other": (DAMAGED, _set("target/engine", "tflite")),
    "name-control-character": (DAMAGED, _set("method/name", "te\nnt")),
    "name-empty": (DAMAGED, _set("target/name", "")),
    "forms-unknown-graph": (
        DAMAGED,
        _set(
            "forms",
            [{"name": "b8", "block": 8, "probe": "forward.onnx", "graphs": {"other": "forward.onnx"}, "weights": {}}],
        ),
    ),
}
"""Name -> kind of the error, and the change of the manifest; the digests of the files stay right."""


def _text(folder: Path, old: str, new: str) -> None:
    path = folder / "manifest.json"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def _reseal(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(sealed(folder, manifest), indent=1) + "\n", encoding="utf-8")


def _digest(folder: Path) -> None:
    data = bytearray((folder / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "state.safetensors").write_bytes(data)


def _state(folder: Path, **tensors: np.ndarray) -> None:
    values = {"scale": np.ones(2, np.float32), "momentum": np.zeros(2, np.float32), **tensors}
    save_file(values, folder / "state.safetensors")
    _reseal(folder)


def _cut(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-4])
    _reseal(folder)


def _graph(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(str(folder / "forward.onnx"), load_external_data=False)
    change(model)
    (folder / "forward.onnx").write_bytes(model.SerializeToString())
    _reseal(folder)


def _foreign(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def _function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="com.example")


def _external(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    """Change one entry of the external data of the only external tensor."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == key:
                    entry.value = value

    return change


FILES: dict[str, Callable[[Path], object]] = {
    "json-key-twice": lambda folder: _text(folder, '"format": 3,', '"format": 3, "format": 3,'),
    "json-nan": lambda folder: _text(folder, '"lr": 0.5', '"lr": NaN'),
    "json-cut": lambda folder: _text(folder, '"executed_on": []', '"executed_on": ['),
    "json-no-object": lambda folder: (folder / "manifest.json").write_text("[]\n"),
    "file-changed": _digest,
    "file-missing": lambda folder: (folder / "backward.onnx").unlink(),
    "state-not-finite": lambda folder: _state(folder, momentum=np.array([0, np.nan], np.float32)),
    "state-further-tensor": lambda folder: _state(folder, other=np.zeros(1, np.float32)),
    "state-cut": lambda folder: _cut(folder, "state.safetensors"),
    "weights-cut": lambda folder: _cut(folder, "weights.safetensors"),
    "graph-cut": lambda folder: _cut(folder, "forward.onnx"),
    "graph-operator-domain": lambda folder: _graph(folder, _foreign),
    "graph-function": lambda folder: _graph(folder, _function),
}
"""Name -> change of the folder."""

EXTERNAL = {
    "external-other-file": ("location", "state.safetensors"),
    "external-outside": ("location", "../weights.safetensors"),
    "external-too-far": ("offset", "4096"),
    "external-too-long": ("length", "48"),
}
"""Name -> entry of the external data and its value."""


def write_all(folder: Path) -> dict[str, str]:
    """Write each bundle under its name; return the kind of the error of each."""
    for name, (_, change) in MANIFESTS.items():
        write(trained(UPDATE), folder / name)
        manifest = json.loads((folder / name / "manifest.json").read_text(encoding="utf-8"))
        change(manifest)
        (folder / name / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for name, damage in FILES.items():
        write(trained(UPDATE), folder / name)
        damage(folder / name)
    for name, (key, value) in EXTERNAL.items():
        write(ema(), folder / name)
        _graph(folder / name, _external(key, value))
    archives = _write_archives(folder)
    kinds = {name: kind for name, (kind, _) in MANIFESTS.items()}
    return {**kinds, **dict.fromkeys((*FILES, *EXTERNAL, *archives), DAMAGED)}


def _write_archives(folder: Path) -> list[str]:
    """Write bundles in one file that have no reading, or two, and one with another content; return their names."""
    with tempfile.TemporaryDirectory() as place:
        write(ema(), Path(place) / "whole")
        pack(Path(place) / "whole", Path(place) / "one.ttac")
        data = (Path(place) / "one.ttac").read_bytes()
    changed = bytearray(data)
    changed[data.index(GAIN.tobytes())] ^= 1
    archives = {f"zip-{name}": edit(bytearray(data)) for name, edit in EDITS.items()} | {"zip-changed": bytes(changed)}
    for name, content in archives.items():
        (folder / name).write_bytes(content)
    return list(archives)
