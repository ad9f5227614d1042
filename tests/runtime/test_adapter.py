"""Adapters: steps, state, save and restore, inputs.  Bundles are made by hand, numbers are numpy's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ttac
from tests.support import tiny_bundles as tiny
from tests.support.tiny_bundles import batch, state_of
from ttac.errors import RuntimeMissingError, UsageError, VerificationError
from ttac.runtime.adapter import REJECTED_IN_A_ROW, Adapter
from ttac.runtime.tensors import is_finite


@pytest.fixture
def ema(tmp_path: Path) -> Adapter:
    return ttac.load(tiny.ema(tmp_path / "ema.ttac"))


def test_one_graph_with_a_running_mean(ema: Adapter) -> None:
    mean = np.array([0.5, 0, -0.5], np.float32)
    for seed, n in enumerate((4, 1, 3)):
        expected, mean = tiny.ema_expected(batch(n, seed), mean)
        np.testing.assert_allclose(ema.step(batch(n, seed)), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(state_of(ema)["mean"], mean, rtol=1e-6)
    assert state_of(ema)["count"] == 3
    spread = np.square(expected).mean()
    stats = ema.stats
    assert stats.pop("milliseconds") > 0
    counted = {"steps": 3, "samples": 8, "rejected": 0, "resets": 0, "not_finite": 0}
    assert stats == {**counted, "form": "portable", "spread": pytest.approx(spread, rel=1e-6)}


def test_forward_backward_update(tmp_path: Path) -> None:
    adapter = ttac.load(tiny.trained(tmp_path / "b"))
    scale = np.ones(2, np.float32)
    for seed, n in enumerate((4, 2, 4, 1)):
        expected, scale = tiny.trained_expected(batch(n, seed), scale)
        np.testing.assert_allclose(adapter.step(batch(n, seed)), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(state_of(adapter)["scale"], scale, rtol=1e-5)
    assert adapter.stats["loss"] == pytest.approx(np.square(expected).mean(), rel=1e-5)


def test_prediction_uses_the_state_and_changes_nothing(ema: Adapter) -> None:
    ema.step(batch())
    before, stats = state_of(ema), ema.stats
    expected, _ = tiny.ema_expected(batch(2, 5), before["mean"])
    np.testing.assert_allclose(ema.predict(batch(2, 5)), expected, rtol=1e-6, atol=1e-7)
    assert stats == ema.stats
    np.testing.assert_equal(state_of(ema), before)


def test_results_stay_when_the_next_step_runs(ema: Adapter) -> None:
    first = ema.step(batch())
    kept = first.copy()
    ema.step(batch(seed=1))
    np.testing.assert_array_equal(first, kept)


def test_the_contract_is_there_to_read(ema: Adapter) -> None:
    assert (ema.batch, ema.smallest_batch, ema.input_shape) == (4, 1, (3,))
    assert (ema.inputs[0].name, ema.output.name) == ("x", "logits")
    assert ema.bundle.report == {"plan": []} and ema.bundle.manifest["method"]["name"] == "tiny"
    ema.stats["steps"] = 99
    assert ema.stats["steps"] == 0


def test_reset_is_exact(ema: Adapter) -> None:
    before, stats = state_of(ema), ema.stats
    first = [ema.step(batch(seed=seed)) for seed in range(3)]
    ema.reset()
    np.testing.assert_equal(state_of(ema), before)
    assert ema.stats == stats
    np.testing.assert_array_equal([ema.step(batch(seed=seed)) for seed in range(3)], first)


def test_save_and_restore_are_exact(ema: Adapter, tmp_path: Path) -> None:
    ema.step(batch())
    ema.save(tmp_path / "state.safetensors")
    then = [ema.step(batch(seed=seed)) for seed in range(3)]
    other = ttac.load(tmp_path / "ema.ttac")
    other.restore(tmp_path / "state.safetensors")
    np.testing.assert_array_equal([other.step(batch(seed=seed)) for seed in range(3)], then)
    ema.restore(str(tmp_path / "state.safetensors"))
    (tmp_path / "state.safetensors").unlink()
    np.testing.assert_array_equal([ema.step(batch(seed=seed)) for seed in range(3)], then)


def test_only_a_finite_state_is_committed(ema: Adapter) -> None:
    ema.step(batch())
    before = state_of(ema)
    logits = ema.step(np.full((4, 3), 1e38, np.float32))
    assert logits.shape == (4, 2), "the prediction is still given"
    np.testing.assert_equal(state_of(ema), before)
    assert (ema.stats["rejected"], ema.stats["steps"]) == (1, 2)
    ema.step(batch())
    assert ema.stats["rejected"] == 1 and state_of(ema)["count"] == 2


def test_a_state_that_rejects_every_step_resets(ema: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    before = state_of(ema)
    ema.step(batch())
    for number in range(REJECTED_IN_A_ROW):
        assert (ema.stats["resets"], state_of(ema)["count"]) == (0, 1), number
        ema.step(np.full((4, 3), 1e38, np.float32))
    np.testing.assert_equal(state_of(ema), before)
    assert (ema.stats["rejected"], ema.stats["resets"]) == (REJECTED_IN_A_ROW, 1)
    assert "10 consecutive steps were rejected; the state is reset" in caplog.text
    ema.step(batch())
    assert state_of(ema)["count"] == 1 and ema.stats["resets"] == 1


def test_a_step_in_between_prevents_the_reset(ema: Adapter) -> None:
    for _ in range(2):
        for _ in range(REJECTED_IN_A_ROW - 1):
            ema.step(np.full((4, 3), 1e38, np.float32))
        ema.step(batch())
    assert ema.stats["resets"] == 0 and state_of(ema)["count"] == 2


def test_a_failing_run_leaves_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = ttac.load(tiny.counting(tmp_path / "b", [{"run": "raise"}, *tiny.STEP]))
    before, stats = state_of(adapter), adapter.stats
    native = adapter._executor.form.graphs["forward"].session.native

    def fail(*_: Any) -> None:
        raise ValueError("out of memory\nsecond line")

    with monkeypatch.context() as patch:
        patch.setattr(native, "_sess", SimpleNamespace(run_with_ort_values=fail))
        with pytest.raises(RuntimeMissingError) as caught:
            adapter.step(np.zeros((1, 3), np.float32))
    assert "failed: out of memory\n  at `forward.onnx`" in str(caught.value) and caught.value.hint
    np.testing.assert_equal(state_of(adapter), before)
    assert adapter.stats == stats
    assert adapter.step(np.zeros((1, 3), np.float32))[0, 0] == 2


def test_a_graph_that_makes_another_shape_of_state_is_refused(tmp_path: Path) -> None:
    text = """forward (float[N,3] x, float[3] mean, int64 count)
      => (float[N,2] logits, float[K] mean_next, int64 count_next, float spread)
      <int64 one = {1}, int64[2] ends = {0, 2}> {
      logits = Gather <axis = 1> (x, ends)
      mean_next = Gather (mean, ends)
      count_next = Add(count, one)
      spread = ReduceMean <keepdims = 0> (x)
    }"""
    folder = tiny.ema(tmp_path / "b")
    (folder / "forward.onnx").write_bytes(tiny.parse(text).SerializeToString())
    tiny.reseal(folder)
    adapter = ttac.load(folder)
    with pytest.raises(VerificationError, match=r"made state `mean` float32 \[2\], the state table says float32 \[3\]"):
        adapter.step(batch())
    assert state_of(adapter)["count"] == 0 and adapter.stats["steps"] == 0


@pytest.mark.parametrize(
    ("x", "problem", "hint"),
    [
        (np.zeros((2, 3), np.uint8), "has dtype uint8; the model takes float32", "normalise the values as in training"),
        (np.zeros((2, 3), np.int64), "has dtype int64", "normalise"),
        (np.zeros((2, 3), bool), "has dtype bool", "astype"),
        (np.zeros((2, 3), object), "has dtype object", "astype"),
        (np.zeros((2, 3), np.complex64), "has dtype complex64", "astype"),
        (np.zeros(3, np.float32), "has shape [3]; the model takes [1 to 4, 3]", "x[None]"),
        (np.zeros((2, 4), np.float32), "has shape [2, 4]; the model takes [1 to 4, 3]", "resize the samples"),
        (np.zeros((2, 3, 1), np.float32), "has shape [2, 3, 1]", "first axis"),
        (np.float32(1), "has shape []", "first axis"),
        (np.zeros((0, 3), np.float32), "has 0 samples", "at least one sample"),
        (np.zeros((5, 3), np.float32), "has 5 samples; the bundle is planned for 4", "recompile with `--batch 5`"),
        ([[1.0, 2.0], [3.0]], "is a list that is no array", "numpy array"),
        ("image.png", "has dtype", "astype"),
        ({"y": np.zeros((1, 3), np.float32)}, "takes the inputs `x`; got `y`", "name to array"),
        ({}, "takes the inputs `x`; got none", "name to array"),
    ],
)
def test_inputs_that_do_not_fit_change_nothing(ema: Adapter, x: Any, problem: str, hint: str) -> None:
    ema.step(batch())
    before, stats = state_of(ema), ema.stats
    for call in (ema.step, ema.predict):
        with pytest.raises(UsageError) as caught:
            call(x)
        assert problem in caught.value.problem and hint in caught.value.hint and "input" in caught.value.where
    np.testing.assert_equal(state_of(ema), before)
    assert ema.stats == stats


def test_a_batch_below_the_smallest_is_refused(tmp_path: Path) -> None:
    folder = tiny.ema(tmp_path / "b")
    manifest = tiny.read(folder)
    manifest["batch"]["smallest"] = 2
    tiny.reseal(folder, manifest)
    with pytest.raises(UsageError, match="has 1 samples; the bundle takes 2 to 4"):
        ttac.load(folder).step(batch(1))


@pytest.mark.parametrize(
    "alike",
    [
        lambda x: x.astype(np.float64),
        lambda x: x.astype(">f4"),
        lambda x: x.tolist(),
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: {"x": x},
    ],
)
def test_other_forms_of_the_same_floats(ema: Adapter, alike: Callable[[np.ndarray], Any]) -> None:
    np.testing.assert_array_equal(ema.predict(alike(batch())), ema.predict(batch()))


def test_inputs_are_not_written_to(ema: Adapter) -> None:
    x = batch()
    x.flags.writeable = False
    ema.step(x)
    np.testing.assert_array_equal(x, batch())


def test_threads_take_turns(ema: Adapter) -> None:
    def work() -> None:
        for seed in range(20):
            ema.step(batch(seed=seed))
            ema.predict(batch(2))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert ema.stats["steps"] == state_of(ema)["count"] == 80


def test_finiteness_is_looked_at_in_pieces() -> None:
    array = np.zeros((7, 11), np.float32)
    assert is_finite(array, chunk=10) and is_finite(np.array(3)) and is_finite(np.zeros(0, np.float32))
    array[6, 10] = -np.inf
    assert not is_finite(array, chunk=10)
