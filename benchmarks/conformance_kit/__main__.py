"""Write the conformance kit: see the docstring of the package."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.conformance_kit import bundles, methods, refused, words
from benchmarks.conformance_kit.reference import Arrays, Reference
from benchmarks.conformance_kit.words import Call
from ttac.runtime.bundle import pack
from ttac.runtime.manifest import FORMAT, identity_of
from ttac.runtime.state_files import write_state

TOLERANCE = 1e-5
"""Most difference of a number from the expected number e, as a multiple of 1 + |e|."""


PACKED = ("statistics-and-external-weights", "forward-backward-update", "method-tent", "method-surgeon")
"""Cases that the kit has a second time, with the bundle in one file."""


def write_kit(folder: Path) -> None:
    """Write the kit into the new folder `folder`."""
    for name in ("bundles", "tensors", "states"):
        (folder / name).mkdir(parents=True)
    cases: list[dict[str, Any]] = []
    for name, (made, calls) in words.cases().items():
        bundles.write(made, folder / "bundles" / name)
        cases.append(_case(folder, name, calls))
    with tempfile.TemporaryDirectory() as place:
        for name in methods.METHODS:
            methods.write(name, folder / "bundles" / f"method-{name}", Path(place))
            cases.append(_case(folder, f"method-{name}", methods.calls(name)))
    damaged, packed = _damaged_states(folder), [_packed(folder, case) for case in cases if case["name"] in PACKED]
    refusals = refused.write_all(folder / "refused")
    kit = {
        "kit": 1,
        "format": FORMAT,
        "tolerance": TOLERANCE,
        "cases": [*cases, *packed, damaged],
        "refused": [{"name": name, "bundle": f"refused/{name}", "error": kind} for name, kind in refusals.items()],
    }
    (folder / "kit.json").write_text(json.dumps(kit, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _packed(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """The case with its bundle in one file."""
    pack(folder / case["bundle"], folder / f"{case['bundle']}.ttac")
    return {**case, "name": f"packed-{case['name']}", "bundle": f"{case['bundle']}.ttac"}


def _case(folder: Path, name: str, calls: Sequence[Call], bundle: str = "") -> dict[str, Any]:
    """Do the calls with the reference reader, and write their tensors; `bundle` is the case's own by default."""
    bundle = f"bundles/{bundle or name}"
    reader, tensors = Reference(folder / bundle), Arrays()
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        done = [_done(folder, reader, call, f"{number}", tensors) for number, call in enumerate(calls)]
    save_file(tensors, folder / "tensors" / f"{name}.safetensors")
    return {"name": name, "bundle": bundle, "tensors": f"tensors/{name}.safetensors", "calls": done}


def _done(folder: Path, reader: Reference, call: Call, prefix: str, tensors: Arrays) -> dict[str, Any]:
    """The entry of a call in `kit.json`; its tensors go to `tensors`."""
    kind = call[0]
    entry: dict[str, Any] = {"call": kind}
    if kind == "refused":
        _, (kind, given) = call
        return {"call": kind, "refused": True, **_given(given, prefix, tensors)}
    if kind in ("step", "predict"):
        entry |= _given(call[1], prefix, tensors)
        entry["outputs"] = _stored(getattr(reader, kind)(call[1]), f"{prefix}/out", tensors)
    elif kind == "save":
        entry["file"] = f"states/{call[1]}"
        write_state(folder / entry["file"], reader.state, identity_of(reader.manifest))
    elif kind == "restore":
        entry["file"] = f"states/{call[1]}"
        reader.restore(load_file(folder / entry["file"]))
    else:
        reader.reset()
    return {**entry, "state": _stored(reader.state, f"{prefix}/state", tensors), "stats": _stats(reader)}


def _stats(reader: Reference) -> dict[str, float | str]:
    """The counters and the reported scalars; a number that JSON lacks as `"NaN"`, `"Infinity"` or `"-Infinity"`."""
    words = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return {name: words.get(str(value), value) for name, value in reader.stats.items()}


def _given(value: Any, prefix: str, tensors: Arrays) -> dict[str, Any]:
    """The inputs of a call, or the file that it reads."""
    if isinstance(value, str):
        return {"file": f"states/{value}"}
    return {"inputs": _stored(value, f"{prefix}/in", tensors)}


def _stored(arrays: Arrays, prefix: str, tensors: Arrays) -> dict[str, str]:
    """Put the arrays among `tensors`; return name -> name in the file."""
    tensors |= {f"{prefix}/{name}": np.array(array, order="C") for name, array in arrays.items()}
    return {name: f"{prefix}/{name}" for name in arrays}


def _damaged_states(folder: Path) -> dict[str, Any]:
    """A case of saved states that a reader must not restore: damaged, of another bundle, not plausible."""
    source = folder / "bundles" / "method-tent"
    manifest = Reference(source).manifest
    states, identity = folder / "states", identity_of(manifest)
    state = load_file(source / manifest["state"]["file"])
    variance = next(key for key in state if key.endswith(".var"))
    write_state(states / "whole.safetensors", state, identity)
    write_state(states / "of-another-bundle.safetensors", state, "0" * 64)
    write_state(states / "negative.safetensors", {**state, variance: -state[variance]}, identity)
    write_state(states / "not-finite.safetensors", {**state, variance: state[variance] * np.float32(np.nan)}, identity)
    write_state(states / "one-tensor-less.safetensors", {k: v for k, v in state.items() if k != variance}, identity)
    write_state(states / "other-shape.safetensors", {**state, variance: state[variance][1:]}, identity)
    data = bytearray((states / "whole.safetensors").read_bytes())
    data[-2] ^= 4
    (states / "changed.safetensors").write_bytes(data)
    (states / "cut.safetensors").write_bytes(data[:-8])
    bad = ("of-another-bundle", "negative", "not-finite", "one-tensor-less", "other-shape", "changed", "cut", "absent")
    calls: list[Call] = [("restore", "whole.safetensors")]
    calls += [("refused", ("restore", f"{file}.safetensors")) for file in bad]
    return _case(folder, "damaged-states", [*calls, *methods.calls("tent")[:2]], "method-tent")


def main() -> int:
    """Write the kit, and print its size."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conformance_kit", description="Write the conformance kit."
    )
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    folder = parser.parse_args().folder
    if folder.exists():
        parser.error(f"`{folder}` exists; give a folder that does not exist yet")
    write_kit(folder)
    kit = json.loads((folder / "kit.json").read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{len(kit['cases'])} cases and {len(kit['refused'])} bundles to refuse, {size / 1e6:.1f} MB: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
