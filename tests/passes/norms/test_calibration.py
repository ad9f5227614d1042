"""Calibration data: reading it, doubting it, and the statistics of values on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.source_models import run, saved, source
from ttac.errors import UsageError
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms import calibration


def normal(model: onnx.ModelProto, folder: Path) -> ir.Model:
    return normalise(load(saved(model, folder)), simplifier=None)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def test_statistics_equal_numpy(tmp_path: Path) -> None:
    """Batches of 4 over 10 samples, the last one incomplete, against the whole tensor in float64."""
    model = normal(source(), tmp_path)
    before = ir.to_onnx_text(model)
    values = [model.graph[0].outputs[0], model.graph[4].outputs[0]]
    x = numbers(10, 3, 8, 8)
    result = calibration.statistics(model, x, values, batch=4)
    assert list(result) == ["c", "f"] and ir.to_onnx_text(model) == before
    for value in values:
        copy = model.clone()
        copy.graph.outputs[:] = [next(v for node in copy.graph for v in node.outputs if v.name == value.name)]
        whole = run(copy, x).astype(np.float64)
        axes = (0, *range(2, whole.ndim))
        mean, var = result[str(value.name)]
        assert mean.dtype == var.dtype == np.float32 and mean.shape == var.shape == (4,)
        np.testing.assert_allclose(mean, whole.mean(axes), rtol=1e-5)
        np.testing.assert_allclose(var, whole.var(axes), rtol=1e-4)


def test_a_large_mean_does_not_cancel_the_variance(tmp_path: Path) -> None:
    model = normal(source("net (float[N,2,50] x) => (float[N,2,50] y) { y = Abs (x) }", {}), tmp_path)
    x = (1000 + numbers(9, 2, 50)).astype(np.float32)
    mean, var = calibration.statistics(model, x, [model.graph[0].outputs[0]], batch=2)["y"]
    np.testing.assert_allclose(mean, x.astype(np.float64).mean((0, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, x.astype(np.float64).var((0, 2)), rtol=1e-3)


def test_two_samples_are_combined_as_one() -> None:
    x = np.random.default_rng(0).standard_normal((7, 3)) * [1, 2, 3] + [0, 5, -5]
    first, second = ((part.mean(0), part.var(0)) for part in (x[:2], x[2:]))
    mean, var = calibration.combine(first, 2, second, 5)
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(var, x.var(0))


def test_calibration_arrays_are_read(tmp_path: Path) -> None:
    x = numbers(40, 3, 4, 4)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", images=x, more=numbers(2))
    for given in (x, x.astype(np.float64), tmp_path / "x.npy", tmp_path / "x.npz", str(tmp_path / "x.npz")):
        lines: list[str] = []
        result = calibration.read(given, (3, 4, 4), say=lines.append)
        assert result.dtype == np.float32 and not lines
        np.testing.assert_allclose(result, x, rtol=1e-6)
        assert calibration.sample_shape(given) == (3, 4, 4)


def test_calibration_images_are_resized_and_prepared(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, grey in (("b.png", 255), ("a.png", 51)):
        image.new("RGB", (12, 8), (grey, grey, 0)).save(tmp_path / name)
    lines: list[str] = []
    result = calibration.read(tmp_path, (3, 4, 6), say=lines.append)
    assert result.shape == (2, 3, 4, 6)
    np.testing.assert_allclose(result[:, 0, 0, 0], [0.2, 1.0], atol=1e-6)
    assert any("scaled to [0, 1]" in line for line in lines) and any(
        "2 calibration samples are few" in line for line in lines
    )
    assert calibration.sample_shape(tmp_path) is None
    prepared = calibration.read(tmp_path, (3, 4, 6), {"mean": [0.2, 0.2, 0.0], "std": [0.4, 0.8, 1.0]})
    np.testing.assert_allclose(prepared[1, :, 0, 0], [2.0, 1.0, 0.0], atol=1e-6)
    grey_scale = calibration.read(tmp_path, (1, 4, 6))
    assert grey_scale.shape == (2, 1, 4, 6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 3, 4, 4), np.int64), "`int64`"),
        (np.zeros((4, 3, 4, 4), np.uint8), "`uint8`"),
        (np.zeros((0, 3, 4, 4), np.float32), "holds no sample"),
        (np.zeros((4, 4, 4, 3), np.float32), "have shape [4, 4, 3], the model takes [3, 4, 4]"),
        (np.full((4, 3, 4, 4), np.nan, np.float32), "NaN or infinity"),
    ],
)
def test_calibration_arrays_that_do_not_fit_are_refused(given: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        calibration.read(given, (3, 4, 4))
    assert message in str(caught.value) and caught.value.hint


def test_calibration_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    np.save(tmp_path / "counts.npy", np.zeros((4, 3, 4, 4), np.int32))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 cut short")
    infinite = numbers(4, 3, 4, 4)
    infinite[2, 0, 0, 0] = np.inf
    np.save(tmp_path / "infinite.npy", infinite)
    np.save(tmp_path / "objects.npy", np.array([{}, {}], object), allow_pickle=True)
    for name, message in (
        ("empty", "holds no image"),
        ("nowhere", "no such input"),
        ("counts.npy", "`int32`"),
        ("objects.npy", "cannot read"),
        ("infinite.npy", "sample 2 of"),
    ):
        with pytest.raises(UsageError) as caught:
            calibration.read(tmp_path / name, (3, 4, 4))
        assert message in str(caught.value), name
    with pytest.raises(UsageError, match="cannot read calibration data"):
        calibration.sample_shape(tmp_path / "broken.npz")


def test_doubtful_calibration_data_is_reported() -> None:
    lines: list[str] = []
    x = numbers(40, 3)
    x[:2] = 0.5
    calibration.read(x, (3,), say=lines.append)
    calibration.read(x[5:6], (3,), say=lines.append)
    assert lines[0].startswith("2 of 40 calibration samples are constant")
    assert lines[1].startswith("1 calibration samples are few")
