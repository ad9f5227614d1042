"""The setting `window`: steps of few samples learn like one step of a whole batch, and predict with running averages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.whole_models import MODELS, Arrays, compiled, parameters_of, samples, state_of
from ttac.bake import bake
from ttac.errors import UsageError
from ttac.runtime.engine import open_session
from ttac.samples.images import Stream
from ttac.samples.streaming import run_stream

SIZE = 4


def pair(method: str, folder: Path, model: str = "resnet", **settings: object) -> tuple[ttac.Adapter, ttac.Adapter]:
    """A bundle with a window for single samples, and one for batches of the window's size."""
    own = {**settings, **({} if method == "bn" else {"guard": "off"})}
    paths = []
    for name, batch, more in (("w", 1, {"window": SIZE}), ("b", SIZE, {})):
        (folder / name).mkdir()
        paths.append(compiled(MODELS[model], folder / name, method=method, batch=batch, settings={**own, **more}))
    one, whole = (ttac.load(path, threads=1) for path in paths)
    return one, whole


def source_logits(x: np.ndarray) -> np.ndarray:
    """The predictions of the model's file."""
    return only_output(MODELS["resnet"], x)


def only_output(path: Path, x: np.ndarray) -> np.ndarray:
    """The output of an ONNX file with one input and one output."""
    session = open_session(path, threads=1)
    logits: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return logits


def moved(adapter: ttac.Adapter) -> Arrays:
    """The trained tensors and the statistics."""
    names = (".scale", ".bias", ".mean", ".var")
    return {name: array for name, array in state_of(adapter).items() if name.endswith(names)}


@pytest.mark.parametrize("method", ["tent", "sar", "surgeon", "bn"])
def test_single_samples_learn_like_a_batch(method: str, tmp_path: Path) -> None:
    """The first window equals one step of its samples, for parameters and for the averages that `bake` reads."""
    one, whole = pair(method, tmp_path)
    x = samples(one.input_shape, SIZE)
    before = moved(one)
    for i in range(SIZE):
        assert all(np.array_equal(moved(one)[name], array) for name, array in before.items())
        one.step(x[i : i + 1])
    whole.step(x)
    assert not all(np.array_equal(moved(one)[name], array) for name, array in before.items())
    for name, array in moved(whole).items():
        np.testing.assert_allclose(moved(one)[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_before_a_full_window_the_source_predicts(tmp_path: Path) -> None:
    one, _ = pair("tent", tmp_path)
    assert (one.batch, one.smallest_batch) == (1, 1)
    x = samples(one.input_shape, SIZE)
    found = np.concatenate([one.step(x[i : i + 1]) for i in range(SIZE)])
    np.testing.assert_allclose(found, source_logits(x), rtol=0, atol=1e-4)
    assert np.array_equal(one.predict(x[:1]), one.predict(x[:1]))
    assert np.abs(one.predict(x[:1]) - found[:1]).max() > 1e-3


def test_a_baked_model_predicts_alike(tmp_path: Path) -> None:
    """`bake` writes the same averages and parameters into the source model."""
    one, _ = pair("tent", tmp_path)
    x = samples(one.input_shape, 2 * SIZE)
    for i in range(2 * SIZE):
        one.step(x[i : i + 1])
    one.save(tmp_path / "state")
    bake(one.path, tmp_path / "state", tmp_path / "baked.onnx", force=True)
    logits = only_output(tmp_path / "baked.onnx", x[:1])
    np.testing.assert_allclose(one.predict(x[:1]), logits, rtol=0, atol=1e-4)


def test_steps_of_two_keep_the_newest_samples(tmp_path: Path) -> None:
    """Steps of 3 and 2 samples fill a window of 4: the step adapts to the last 4 samples, and counts from 0."""
    path = compiled(MODELS["resnet"], tmp_path, batch=3, settings={"window": SIZE, "guard": "off"})
    few = ttac.load(path, threads=1)
    x = samples(few.input_shape, 5)
    few.step(x[:3])
    assert state_of(few)["window.filled"] == 3
    few.step(x[3:])
    assert state_of(few)["window.filled"] == 0
    np.testing.assert_array_equal(state_of(few)["window.x"], x[1:])
    (tmp_path / "b").mkdir()
    whole = ttac.load(compiled(MODELS["resnet"], tmp_path / "b", batch=SIZE, settings={"guard": "off"}), threads=1)
    whole.step(x[1:])
    for name, array in parameters_of(whole).items():
        np.testing.assert_allclose(parameters_of(few)[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_window_survives_in_the_state(tmp_path: Path) -> None:
    one, _ = pair("tent", tmp_path)
    x = samples(one.input_shape, SIZE)
    for i in range(SIZE - 1):
        one.step(x[i : i + 1])
    one.save(tmp_path / "state")
    one.step(x[-1:])
    learned = parameters_of(one)
    one.reset()
    one.restore(tmp_path / "state")
    one.step(x[-1:])
    for name, array in learned.items():
        np.testing.assert_array_equal(parameters_of(one)[name], array)


def test_a_run_counts_full_windows(tmp_path: Path) -> None:
    """Steps between full windows report nothing new: they are no further held batches, and no further estimates."""
    settings = {"window": 16, "guard": "on", "estimate": 3}
    path = compiled(MODELS["resnet"], tmp_path, batch=SIZE, settings=settings)
    x = np.concatenate([samples((3, 16, 16), 16), np.zeros((2 * 16 + SIZE, 3, 16, 16), np.float32)])
    stream = Stream(count=len(x), read=lambda start, stop: x[start:stop])
    adapter, estimates = ttac.load(path, threads=1), []
    outcome = run_stream(ttac.load(path, threads=1), stream, batch=SIZE)
    for start in range(0, len(x), SIZE):
        adapter.step(x[start : start + SIZE])
        estimates += [adapter.stats["estimated_error"]] if (start + SIZE) % 16 == 0 else []
    assert outcome.held == adapter.stats["held"] == 2
    assert outcome.estimated_error == pytest.approx(np.mean(estimates), abs=1e-9)


def test_a_held_window_is_forgotten(tmp_path: Path) -> None:
    """The samples after a window of constants are predicted as by the source."""
    demo = Path(ttac.__file__).resolve().parent / "demo"
    ttac.compile(
        demo / "fashion_resnet_bn.onnx",
        batch=1,
        calibration=demo / "fashion_calibration.npz",
        settings={"window": 16},
        output=tmp_path / "b.ttac",
    )
    adapter = ttac.load(tmp_path / "b.ttac", threads=1)
    constant = np.zeros((1, *adapter.input_shape), np.float32)
    x = samples(adapter.input_shape, 1)
    first = adapter.predict(x)
    for _ in range(16):
        adapter.step(constant)
    assert adapter.stats["held"] == 1
    np.testing.assert_array_equal(adapter.predict(x), first)


def test_norms_of_single_values_take_single_samples(tmp_path: Path) -> None:
    """A norm over [N, C] has no statistics of one sample; a window has."""
    one, whole = pair("tent", tmp_path, model="signal")
    x = samples(one.input_shape, SIZE)
    assert (one.smallest_batch, whole.smallest_batch) == (1, 2)
    for i in range(SIZE):
        assert np.isfinite(one.step(x[i : i + 1])).all()
    whole.step(x)
    for name, array in parameters_of(whole).items():
        np.testing.assert_allclose(parameters_of(one)[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"batch": 8}, "a step takes 8 samples, and the window holds 4"),
        ({"train": "all"}, "a window excludes `--train all`"),
        ({"max_shape": (3, 32, 32)}, "a window excludes `--max-shape`"),
    ],
)
def test_options_that_a_window_excludes(choices: dict[str, object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=problem):
        ttac.compile(MODELS["resnet"], settings={"window": SIZE}, output=tmp_path / "b.ttac", **choices)  # type: ignore[arg-type]
