"""Bundles on disk: refusals with their exit code and message, and writing a bundle whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ttac
from tests.support import tiny_bundles as tiny
from tests.support.tiny_bundles import change
from ttac.errors import RuntimeMissingError, TtacError, UsageError, VerificationError
from ttac.runtime.bundle import Bundle, read_manifest

FILES = ("forward.onnx", "infer.onnx", "report.json", "state.safetensors", "weights.safetensors")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny.ema(tmp_path / "b")


def refusal(folder: Path, error: type[TtacError]) -> str:
    """The message of `load` for the folder."""
    with pytest.raises(error) as caught:
        ttac.load(folder)
    assert type(caught.value) is error and caught.value.where and caught.value.hint
    return str(caught.value)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    message = refusal(bundle, VerificationError)
    assert "not the one the manifest was written for" in message and str(bundle / name) in message


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_truncated_file(bundle: Path, name: str) -> None:
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[:-1])
    assert "not the one the manifest was written for" in refusal(bundle, VerificationError)
    (bundle / name).unlink()
    assert "a file of the bundle is missing" in refusal(bundle, VerificationError)


def test_files_beyond_the_listed_ones_are_left_alone(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    ttac.load(bundle).step(tiny.batch())


@pytest.mark.parametrize(
    "name", ["../forward.onnx", "/etc/hostname", "a/b.onnx", "a\\b.onnx", "C:b.onnx", "..", ".", "", "a\0b"]
)
def test_names_that_lead_elsewhere(bundle: Path, name: str) -> None:
    files = tiny.read(bundle)["files"]
    change(bundle, "files", {**files, name: "0" * 64})
    assert "is not a plain file name inside the folder" in refusal(bundle, VerificationError)
    change(bundle, "files", files)
    change(bundle, "graphs/forward/file", name)
    assert "is not a plain file name inside the folder" in refusal(bundle, VerificationError)


def test_links_that_lead_elsewhere(bundle: Path, tmp_path: Path) -> None:
    (bundle / "forward.onnx").rename(tmp_path / "outside.onnx")
    (bundle / "forward.onnx").symlink_to(tmp_path / "outside.onnx")
    assert "`forward.onnx` leads out of the bundle's folder" in refusal(bundle, VerificationError)


def test_a_link_to_itself_is_refused(bundle: Path) -> None:
    (bundle / "forward.onnx").unlink()
    (bundle / "forward.onnx").symlink_to("forward.onnx")
    assert "is a link that cannot be followed" in refusal(bundle, VerificationError)


def test_the_manifest_may_not_be_a_link(bundle: Path, tmp_path: Path) -> None:
    (bundle / "manifest.json").rename(tmp_path / "manifest.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "manifest.json")
    assert "the manifest is a symbolic link" in refusal(bundle, VerificationError)
    (tmp_path / "manifest.json").rename(bundle / "other.json")
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").symlink_to("other.json")
    assert "the manifest is a symbolic link" in refusal(bundle, VerificationError)


def test_a_bundle_may_be_reached_through_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle, target_is_directory=True)
    (bundle / "forward.onnx").rename(bundle / "real.onnx")
    (bundle / "forward.onnx").symlink_to("real.onnx")
    ttac.load(tmp_path / "link").step(tiny.batch())


@pytest.mark.parametrize("location", ["../outside.bin", "outside.bin", "", "./weights.safetensors"])
def test_weights_outside_the_listed_files(bundle: Path, tmp_path: Path, location: str) -> None:
    for folder in (tmp_path, bundle):
        (folder / "outside.bin").write_bytes(tiny.GAIN.tobytes())
    model = tiny.with_external(tiny.parse(tiny.EMA), "gain", tiny.GAIN, location, 0)
    (bundle / "forward.onnx").write_bytes(model.SerializeToString())
    (bundle / "outside.bin").rename(tmp_path / "aside")
    tiny.reseal(bundle)
    (tmp_path / "aside").rename(bundle / "outside.bin")
    message = refusal(bundle, VerificationError)
    assert f"the graph wants 24 bytes at 0 of `{location}`" in message


@pytest.mark.parametrize(
    "data", [b"\x3a\x05ab", b"\xff" * 12, b"\x0b", b"\x09\x01", b"\x08", b"<html>not found</html>"]
)
def test_a_graph_that_is_no_protobuf(bundle: Path, data: bytes) -> None:
    (bundle / "forward.onnx").write_bytes(data)
    tiny.reseal(bundle)
    assert "the graph is not a whole ONNX file" in refusal(bundle, VerificationError)


@pytest.mark.parametrize("name", ["state.safetensors", "weights.safetensors"])
@pytest.mark.parametrize("data", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}" + b"\0"])
def test_tensor_files_that_are_none(tmp_path: Path, name: str, data: bytes) -> None:
    folder = tiny.trained(tmp_path / "b")
    (folder / name).write_bytes(data)
    tiny.reseal(folder)
    assert "not a whole safetensors file" in refusal(folder, VerificationError)


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"mean": np.zeros(3, np.float32)}, "the state lacks `count`"),
        (
            {"mean": np.zeros(3, np.float32), "count": np.array(0), "more": np.array(0)},
            "beyond the state table, `more`",
        ),
        ({"mean": np.zeros(2, np.float32), "count": np.array(0)}, "`mean` is float32 [2], the state table says"),
        ({"mean": np.full(3, np.inf, np.float32), "count": np.array(0)}, "`mean` is not finite"),
    ],
)
def test_an_initial_state_that_is_not_the_table(bundle: Path, state: dict[str, np.ndarray], problem: str) -> None:
    save_file(state, bundle / "state.safetensors")
    tiny.reseal(bundle)
    assert problem in refusal(bundle, VerificationError)


def test_a_bundle_without_state_or_weights(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    text = "forward (float[N,3] x) => (float[N,3] logits) { logits = Relu(x) }"
    manifest = tiny.manifest_of({"forward": {}}, {}, tiny.STEP, 3)
    tiny.write_bundle(folder, {"forward": tiny.parse(text)}, {}, manifest)
    adapter = ttac.load(folder)
    np.testing.assert_array_equal(adapter.step(tiny.batch()), np.maximum(tiny.batch(), 0))
    adapter.save(tmp_path / "s")
    adapter.restore(tmp_path / "s")


# --- the manifest -----------------------------------------------------------------------------------------------------


def test_paths_that_are_no_bundle(bundle: Path, tmp_path: Path) -> None:
    assert "there is no such bundle" in refusal(tmp_path / "missing", UsageError)
    assert "the path is a file, not a bundle" in refusal(bundle / "forward.onnx", UsageError)
    (bundle / "manifest.json").unlink()
    assert "it has no `manifest.json`" in refusal(bundle, UsageError)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda text: text[:-20], "not valid JSON"),
        (lambda text: "", "not valid JSON"),
        (lambda text: "[]", "not a JSON object"),
        (lambda text: text.replace('"memory": {}', '"memory": {"peak": NaN}'), "NaN is not JSON"),
        (lambda text: text.replace('"format": 3', '"format": 3, "format": 3'), "the same key twice"),
        (lambda text: '{"a":' * 5000, "not valid JSON"),
        (lambda text: text.encode("utf-16"), "not valid JSON"),
    ],
)
def test_a_damaged_manifest(bundle: Path, damage: Callable[[str], Any], problem: str) -> None:
    damaged = damage((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    assert problem in refusal(bundle, VerificationError)


@pytest.mark.parametrize(("version", "hint"), [(4, "pip install --upgrade ttac"), (2, "recompile the model")])
def test_another_format(bundle: Path, version: int, hint: str) -> None:
    change(bundle, "format", version)
    message = refusal(bundle, RuntimeMissingError)
    assert f"the bundle has format {version}, this ttac reads format 3" in message
    assert "written by ttac 0.1.0" in message and hint in message


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("format", True, "`format` is True, not 3"),
        ("format", "1", "`format` is '1'"),
        ("format", 0, "`format` is 0"),
        ("surprise", 1, "has unknown keys: `surprise`"),
        ("sites", ..., "has missing keys: `sites`"),
        ("ttac", 1, "`ttac` is not a name"),
        ("ttac", "0.1\x1b[2J", "`ttac` is not a name"),
        ("method/name", "\x1b]0;title\x07", "`method.name` is not a name"),
        ("source/file", "\x9b2J.onnx", "`source.file` is not a name"),
        ("target/name", "\x1b[2J", "`target.name` is not a name"),
        ("target/threads", 60000, "`target.threads` is 60000, more than 1024"),
        ("target/threads", 2**70, "more than 1024"),
        ("batch/planned", 2**40, "more than 2147483647"),
        ("inputs/0/shape", ["N", 2**70], "more than 2147483647"),
        ("preprocessing", {"mean": [10**400]}, "`preprocessing.mean` is not a list of at least 1 finite"),
        ("preprocessing", {"range": [0, 1, 2]}, "`preprocessing.range` is not two numbers"),
        ("preprocessing", {"range": [1, 0]}, "`preprocessing.range` is not two numbers"),
        ("method", [], "`method` is not an object"),
        ("method/settings", ..., "`method` lacks `settings`"),
        ("target/engine", "tensorrt", "`target.engine` is 'tensorrt'"),
        ("target/threads", -1, "`target.threads` is -1"),
        ("source/sha256", "abc", "`source.sha256` is not a SHA-256"),
        ("preprocessing", 1, "`preprocessing` is not an object"),
        ("preprocessing", {"layout": "CHW"}, "`preprocessing.layout` is 'CHW'"),
        ("preprocessing", {"mean": "0.5"}, "`preprocessing.mean` is not a list"),
        ("preprocessing", {"mean": [0.5, True]}, "`preprocessing.mean` is not a list of at least 1 finite"),
        ("preprocessing", {"std": [0.5, 0.0]}, "`preprocessing.std` is not above 0"),
        ("preprocessing", {"range": [0]}, "`preprocessing.range` is not a list of at least 2 finite"),
        ("sites", [{}], "`sites[0]` lacks `name`"),
        ("sites", [{"name": "a", "kind": "batch"}], "`sites[0]` lacks `statistics`"),
        ("executed_on", {}, "`executed_on` is not a list"),
        ("files/forward.onnx", "f" * 63, "`files['forward.onnx']` is not a SHA-256"),
        ("files/manifest.json", "f" * 64, "lists `manifest.json` itself"),
        ("inputs", [], "`inputs` is empty"),
        ("inputs/0/shape", [4, 3], "`inputs` has no shape with `N`"),
        ("inputs/0/shape", ["N", "M"], "`inputs[0].shape[1]` is 'M'"),
        ("inputs/0/shape", "N3", "`inputs[0].shape` is not a list"),
        ("inputs/0/dtype", "bfloat16", "`inputs[0].dtype` is 'bfloat16'"),
        ("inputs/0/layout", "NCHW", "`inputs[0]` has the unknown key `layout`"),
        ("outputs", [], "`outputs` is empty"),
        ("outputs/0/shape", ["N", "N"], "`outputs[0].shape` has `N` twice"),
        ("outputs/0/shape", [5, 5], "`head.output` is `logits`, whose shape has no `N`"),
        ("outputs/0/name", "y", "`head.output` is 'logits', which `outputs` lacks"),
        (
            "programs/predict",
            [{"run": "forward"}, {"return": ["logits", "x"]}],
            "returns 2 values, and `outputs` has 1",
        ),
        ("outputs/0/name", "", "`outputs[0].name` is not a name"),
        ("batch/planned", 0, "`batch.planned` is 0"),
        ("batch/smallest", 5, "`batch.smallest` is 5, more than the planned 4"),
        ("state/file", "other.safetensors", "names `other.safetensors`, which `files` does not list"),
        ("state/tensors/0/role", "hero", "`state.tensors[0].role` is 'hero'"),
        ("state/tensors/0/shape", ["N"], "`state.tensors[0].shape[0]` is 'N'"),
        ("state/tensors/0/name", "count", "`state.tensors` has `count` twice"),
        ("graphs/forward/file", "state.safetensors", "is `state.safetensors`, not an `.onnx` file"),
        ("graphs/forward/state", {"mean_next": "sum"}, "names `sum`, which the state table lacks"),
        ("graphs/forward/state", {"a": "mean", "b": "mean"}, "has `mean` twice"),
        ("graphs/forward/stats", {"spread": "steps"}, "takes the name `steps`"),
        ("graphs/forward/optimization", "most", "`graphs['forward'].optimization` is 'most'"),
        ("graphs/forward/when", 1, "has the unknown key `when`"),
        ("programs/train", [], "`programs` has the unknown key `train`"),
        ("programs/predict", ..., "`programs` lacks `predict`"),
    ],
)
def test_a_manifest_with_a_wrong_value(bundle: Path, path: str, value: Any, problem: str) -> None:
    change(bundle, path, value)
    message = refusal(bundle, VerificationError)
    assert problem in message, message
    with pytest.raises(VerificationError):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("graphs/forward/state", {"absent": "mean"}, "reads output `absent`, which the graph lacks"),
        ("graphs/forward/stats", {"absent": "loss"}, "reads output `absent`, which the graph lacks"),
        ("inputs/0/name", "image", "reads `x` in graph `forward`, and nothing provides it"),
        ("inputs/0/shape", ["N", 4], "takes `x` as float32 ['N', 3], the manifest has float32 [N, 4]"),
        ("inputs/0/dtype", "float64", "takes `x` as float32"),
    ],
)
def test_a_manifest_that_does_not_fit_its_graphs(bundle: Path, path: str, value: Any, problem: str) -> None:
    change(bundle, path, value)
    assert problem in refusal(bundle, VerificationError)


def test_reading_gives_what_was_written(bundle: Path) -> None:
    manifest = read_manifest(str(bundle))
    assert manifest == tiny.read(bundle)
    found = Bundle.read(str(bundle))
    assert (found.path, found.manifest, found.report) == (bundle, manifest, {"plan": []})
