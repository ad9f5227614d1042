"""Baking: the adapted state in an ONNX model gives the numbers of the adapter with that state."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from safetensors.numpy import save_file

import ttac
from tests.support.tiny_bundles import STEP, manifest_of
from ttac import bake as baking
from ttac.bake import bake
from ttac.cli import main
from ttac.errors import TtacError, UnsupportedError, UsageError
from ttac.passes.graph.execute import Executable
from ttac.passes.graph.graph_files import write_graphs
from ttac.pipeline import compile_model
from ttac.runtime import bundle as bundles
from ttac.runtime import load
from ttac.runtime.manifest import identity_of, parse_manifest
from ttac.runtime.state_files import read_state, write_state

MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[N, 3, 8, 8] x) => (float[N, 5] logits) {
  c = Conv <pads = [1, 1, 1, 1]> (x, "conv.weight")
  y = BatchNormalization (c, "bn.scale", "bn.bias", "bn.mean", "bn.var")
  r = Relu (y)
  p = GlobalAveragePool (r)
  f = Flatten (p)
  logits = Gemm (f, "head.weight")
}
"""
CHANNELS = 16
STATE = {"bn.scale": "parameter", "bn.bias": "parameter", "bn.mean": "statistic", "bn.var": "statistic"}


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "conv.weight": random.normal(size=(CHANNELS, 3, 3, 3)).astype(np.float32),
        "head.weight": random.normal(size=(CHANNELS, 5)).astype(np.float32),
        "bn.scale": np.ones(CHANNELS, np.float32),
        "bn.bias": np.zeros(CHANNELS, np.float32),
        "bn.mean": np.zeros(CHANNELS, np.float32),
        "bn.var": np.ones(CHANNELS, np.float32),
    }


def network(tensors: dict[str, np.ndarray]) -> ir.Model:
    proto = onnx.parser.parse_model(MODEL)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in tensors.items())
    return ir.from_proto(proto)


def adapted() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {name: random.random(CHANNELS, np.float32) + 0.5 for name in STATE}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose method trains `bn.scale` and `bn.bias` and tracks the statistics."""
    folder = tmp_path / "net-tent-cpu.ttac"
    folder.mkdir()
    write_graphs(folder, {"infer": network(weights()), "forward": network(weights())})
    (folder / "report.json").write_text("{}")
    write_manifest(folder, STATE)
    return folder


def write_manifest(folder: Path, roles: dict[str, str]) -> None:
    """Write the initial state and the manifest of a bundle whose graphs are there."""
    state = {name: (np.ones(CHANNELS, np.float32), role) for name, role in roles.items()}
    save_file({name: array for name, (array, _) in state.items()}, folder / "state.safetensors")
    site = {"name": "bn", "kind": "batch", "channels": CHANNELS, "statistics": "batch", "trained": True}
    images = {"name": "x", "dtype": "float32", "shape": ["N", 3, 8, 8]}
    manifest = {**manifest_of({"forward": {}}, state, STEP, 5), "inputs": [images], "sites": [site]}
    bundles.write_manifest(folder, manifest)


def expected(tensors: dict[str, np.ndarray], x: np.ndarray, folder: Path) -> np.ndarray:
    folder.mkdir()
    write_graphs(folder, {"graph": network({**weights(), **tensors})})
    return Executable(folder / "graph.onnx")({"x": x})["logits"]


def save(folder: Path, file: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A state as `Adapter.save` writes it."""
    identity = identity_of(json.loads((folder / "manifest.json").read_text()))
    write_state(file, tensors, identity)
    return file


def refusal(bundle: Path, state: Path, out: Path, samples: Path | None = None) -> TtacError:
    with pytest.raises(TtacError) as caught:
        bake(bundle, state, out, samples)
    assert not out.exists() and not list(out.parent.glob(".*"))
    return caught.value


@pytest.mark.parametrize("limit", [baking.SINGLE_FILE, 64])
def test_the_baked_model_has_learned_the_state(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(baking, "SINGLE_FILE", limit)
    state = save(bundle, tmp_path / "s.safetensors", adapted())
    done = bake(bundle, state, tmp_path / "out.onnx")
    assert done.replaced == {"parameter": 2, "statistic": 2} and done.probe == (1, 5) and not done.source_statistics
    assert (tmp_path / "out.onnx.data").exists() == (limit == 64)
    x = np.random.default_rng(2).random((3, 3, 8, 8), np.float32)
    found = Executable(tmp_path / "out.onnx")({"x": x})["logits"]
    np.testing.assert_allclose(found, expected(adapted(), x, tmp_path / "reference"), rtol=1e-6)


def test_the_command_prints_the_path(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, out = save(bundle, tmp_path / "s.safetensors", adapted()), str(tmp_path / "out.onnx")
    assert main(["bake", str(bundle), "--state", str(state), "-o", out]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert captured.err == (
        "baked 2 parameter tensors, 2 statistic tensors; one sample gives [1, 5]\n"
        "warning: the model is not compared with the source (`--samples`)\n"
    )


def test_norms_without_tracked_statistics_are_reported(bundle: Path, tmp_path: Path) -> None:
    parameters = [name for name, role in STATE.items() if role == "parameter"]
    write_manifest(bundle, dict.fromkeys(parameters, "parameter"))
    state = save(bundle, tmp_path / "s.safetensors", {name: adapted()[name] for name in parameters})
    assert bake(bundle, state, tmp_path / "out.onnx").source_statistics == ("bn",)


def test_states_that_are_not_the_bundles(bundle: Path, tmp_path: Path) -> None:
    state, out = tmp_path / "s.safetensors", tmp_path / "out.onnx"
    assert isinstance(refusal(bundle, state, out), UsageError)
    save_file(adapted(), state)
    assert refusal(bundle, state, out).problem == "the state belongs to another model, method or settings"


def test_a_tensor_without_a_place_is_refused(bundle: Path, tmp_path: Path) -> None:
    write_manifest(bundle, {**STATE, "prompt": "parameter"})
    state = save(bundle, tmp_path / "s.safetensors", {**adapted(), "prompt": np.ones(CHANNELS, np.float32)})
    error = refusal(bundle, state, tmp_path / "out.onnx")
    assert isinstance(error, UnsupportedError) and error.problem.startswith("`prompt` was adapted, but")


def test_the_folder_must_exist(bundle: Path, tmp_path: Path) -> None:
    state = save(bundle, tmp_path / "s.safetensors", adapted())
    assert refusal(bundle, state, tmp_path / "none" / "out.onnx").problem == "the folder does not exist"


@pytest.fixture
def images(bundle: Path, tmp_path: Path) -> Path:
    """Samples with the classes that the source predicts, so that it makes no error."""
    x = np.random.default_rng(5).standard_normal((40, 3, 8, 8)).astype(np.float32)
    logits = expected({}, x, tmp_path / "source")
    np.savez(tmp_path / "x.npz", images=x, labels=logits.argmax(1))
    return tmp_path / "x.npz"


def spoiled(scale: float) -> dict[str, np.ndarray]:
    """Tensors of the source with a scale that makes predictions differ, or all alike."""
    source = {name: weights()[name] for name in STATE}
    return {**source, "bn.scale": np.full(CHANNELS, scale, np.float32)}


def test_a_model_that_errs_more_is_refused_unless_forced(bundle: Path, images: Path, tmp_path: Path) -> None:
    state, out = save(bundle, tmp_path / "s.safetensors", spoiled(-1.0)), tmp_path / "out.onnx"
    error = refusal(bundle, state, out, images)
    assert "on 40 samples, the source errs on 0.0%, the baked model on " in error.problem
    done = bake(bundle, state, out, images, force=True)
    assert out.exists() and done.comparison is not None and (done.comparison.baked.error or 0) > 0.02


def test_a_model_as_good_as_the_source_is_written(
    bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, out = save(bundle, tmp_path / "s.safetensors", spoiled(1.0)), tmp_path / "out.onnx"
    command = ["bake", str(bundle), "--state", str(state), "-o", str(out), "--samples", str(images)]
    assert main(command) == 0
    assert "on 40 samples, the source errs on 0.0%, the baked model on 0.0%\n" in capsys.readouterr().err


def test_a_collapsed_model_is_refused_without_labels(bundle: Path, images: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.load(images)["images"])
    state, out = save(bundle, tmp_path / "s.safetensors", spoiled(0.0)), tmp_path / "out.onnx"
    error = refusal(bundle, state, out, tmp_path / "x.npy")
    assert "on 40 samples without labels, the source has" in error.problem
    assert "the baked model 0.000" in error.problem


def test_leftovers_of_a_killed_bake_disappear(bundle: Path, tmp_path: Path) -> None:
    left = tmp_path / "out" / ".ttac-abcd1234"
    (left / "baked").mkdir(parents=True)
    state = save(bundle, tmp_path / "s.safetensors", spoiled(1.0))
    bake(bundle, state, tmp_path / "out" / "out.onnx")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["out.onnx"]


def test_statistics_of_few_batches_are_refused_without_samples(tmp_path: Path) -> None:
    """One batch of noise would make up half of the averages; without a batch they are the source's."""
    model = Path(__file__).parents[1] / "models" / "resnet.onnx"
    compile_model(model, method="bn", batch=4, output=tmp_path / "bn.ttac")
    adapter, state, out = load(tmp_path / "bn.ttac", threads=1), tmp_path / "s", tmp_path / "out.onnx"
    adapter.save(state)
    bake(tmp_path / "bn.ttac", state, tmp_path / "source.onnx")
    x = np.random.default_rng(0).standard_normal((4, *adapter.input_shape), dtype=np.float32)
    adapter.step(x)
    adapter.save(state)
    error = refusal(tmp_path / "bn.ttac", state, out)
    assert error.problem == "the statistics of the state average 1 of at least 10 batches"
    bake(tmp_path / "bn.ttac", state, tmp_path / "forced.onnx", force=True)
    for _ in range(9):
        adapter.step(x)
    adapter.save(state)
    bake(tmp_path / "bn.ttac", state, out)
    assert out.exists()


def test_the_check_set_refuses_a_collapsed_model_without_samples(tmp_path: Path) -> None:
    """The bundle keeps calibration samples, on which the trained tensors are compared with the source."""
    demo, bundle, state = Path(ttac.__file__).parent / "demo", tmp_path / "b.ttac", tmp_path / "s"
    calibration = demo / "fashion_calibration.npz"
    compile_model(demo / "fashion_vit.onnx", method="tent", batch=4, output=bundle, calibration=calibration)
    load(bundle, threads=1).save(state)
    done = bake(bundle, state, tmp_path / "source.onnx")
    assert done.comparison is not None and done.comparison.baked.count > 0
    assert done.comparison.baked.information == pytest.approx(done.comparison.source.information)
    manifest = parse_manifest(json.loads((bundle / "manifest.json").read_text()))
    trained = {name for name in manifest.state if name.endswith((".scale", ".bias"))}
    arrays = read_state(state, manifest)
    write_state(state, {n: np.zeros_like(a) if n in trained else a for n, a in arrays.items()}, manifest.identity)
    assert "the baked model 0.000" in refusal(bundle, state, tmp_path / "out.onnx").problem
