"""The check set's formulas, restated in NumPy: stored samples, the loss of a round, its end, and the way back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import run
from ttac.passes.graph.state import StateTensor
from ttac.passes.step_graphs.check_set import (
    FAILED,
    LEFT,
    LOST,
    REACH,
    RETURNS,
    STRIKES,
    TURN,
    CheckSet,
    Stored,
    check_clock,
    check_graph,
    likeliest,
    return_graph,
    sample,
    sample_graph,
)

OPSET, COUNT, BATCH, CLASSES = 18, 6, 2, 5
CLASS_HEAD = Head(kind="classes", shape=("N", CLASSES), axis=1, values="logits")
BINARY = Head(kind="binary", shape=("N", CLASSES), axis=1, values="logits")
DENSE = Head(kind="dense", shape=("N", CLASSES, 3, 4), axis=1, values="logits")
FLAT = Head(kind="binary", shape=("N",), axis=None, values="logits")


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(p / p.sum(1, keepdims=True))


def joined(z: np.ndarray, head: Head) -> np.ndarray:
    """Probabilities as the room of step graphs lays them out: classes, or 1 - s and s of every answer."""
    if not head.binary:
        return softmax(z)
    s = 1 / (1 + np.exp(-z.astype(np.float64)))
    return np.concatenate([1 - s, s], 1) if head.axis is not None else np.stack([1 - s, s], 1)


def lost(before: np.ndarray, after: np.ndarray, head: Head) -> float:
    """The loss of a batch, from scores: the second oracle works on the answers, not on indices."""
    if head.binary:
        same, sure = (before > 0) == (after > 0), np.abs(after.astype(np.float64))
        return float(np.where(same, 0, 1 - np.exp(-sure)).mean())
    behind = after.max(1) - (after * (before == before.max(1, keepdims=True))).sum(1)
    return float((1 - np.exp(-behind.astype(np.float64))).mean())


def scores(head: Head, seed: int, count: int = COUNT) -> np.ndarray:
    shape = (count, *[int(size) for size in head.shape[1:]])
    return (2 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


class Check:
    """The graph `guard-check` with its state."""

    def __init__(self, head: Head, source: np.ndarray, limit: float = 1.0, *, rests: bool = False) -> None:
        classes = likeliest(joined(source, head).astype(np.float32), head)
        images = Stored.of(np.zeros((COUNT, 1), np.float32), 0)
        self.set = CheckSet(inputs={"x": images}, classes=classes, batch=BATCH)
        value = ir.val("z", dtype=ir.DataType.FLOAT, shape=ir.Shape(list(head.shape)))
        graph = check_graph(self.set, value, head, OPSET, limit=limit, every=10, rests=rests)
        self.model, self.moves = graph.model, graph.moves
        self.state = {tensor.name: tensor.initial for tensor in graph.state}

    def __call__(self, z: np.ndarray) -> dict[str, np.ndarray]:
        outputs = run(self.model, {**self.state, "z": z})
        self.state.update({name: outputs[output] for output, name in self.moves.items()})
        return outputs


@pytest.mark.parametrize("head", [CLASS_HEAD, BINARY, DENSE, FLAT], ids=["classes", "binary", "dense", "flat"])
def test_a_round_has_the_mean_loss_of_all_samples(head: Head) -> None:
    source, now = scores(head, 0), scores(head, 1)
    check = Check(head, source)
    for turn in range(COUNT // BATCH):
        assert float(check.state[TURN]) == turn
        outputs = check(now[turn * BATCH : (turn + 1) * BATCH])
    np.testing.assert_allclose(outputs["guard.loss"], lost(source, now, head), rtol=1e-5)
    assert float(outputs[FAILED]) == 0
    assert float(check.state[TURN]) == float(check.state[LOST]) == float(check.state[RETURNS]) == 0


def test_the_source_itself_loses_nothing() -> None:
    source = scores(CLASS_HEAD, 0)
    check = Check(CLASS_HEAD, source, limit=1e-6)
    for start in range(0, 2 * COUNT, BATCH):
        outputs = check(source[start % COUNT : start % COUNT + BATCH])
        assert float(outputs["guard.loss"]) < 1e-6 and float(outputs[FAILED]) == 0


def test_a_round_fails_as_soon_as_its_sum_is_too_large() -> None:
    source = scores(CLASS_HEAD, 0)
    first = lost(source[:BATCH], -source[:BATCH], CLASS_HEAD)
    allowed, refused = (Check(CLASS_HEAD, source, limit=first / (COUNT // BATCH) * factor) for factor in (1.01, 0.99))
    assert float(allowed(-source[:BATCH])[FAILED]) == 0 and float(allowed.state[TURN]) == 1
    assert float(refused(-source[:BATCH])[FAILED]) == 1 and float(refused.state[TURN]) == 0
    assert float(refused.state[RETURNS]) == 1


def test_predictions_that_are_no_numbers_fail() -> None:
    check = Check(CLASS_HEAD, scores(CLASS_HEAD, 0))
    assert float(check(np.full((BATCH, CLASSES), np.nan, np.float32))[FAILED]) == 1
    assert all(np.isfinite(value).all() for value in check.state.values())


def test_each_failed_round_doubles_the_rest() -> None:
    source = scores(CLASS_HEAD, 0)
    check = Check(CLASS_HEAD, source, limit=1e-4, rests=True)
    for strikes in (1, 2, 3):
        check(-source[:BATCH])
        assert (float(check.state[STRIKES]), float(check.state[LEFT])) == (strikes, 10 + 10 * 2**strikes)
    for start in range(0, COUNT, BATCH):
        check(source[start : start + BATCH])
    assert float(check.state[STRIKES]) == 2


def test_failed_rounds_shrink_the_radius_and_good_ones_grow_it() -> None:
    source = scores(CLASS_HEAD, 0)
    check = Check(CLASS_HEAD, source, limit=1e-4)
    for _ in range(2):
        check(-source[:BATCH])
    assert float(check.state[REACH]) == 0.25
    for start in range(0, 8 * COUNT, BATCH):
        check(source[start % COUNT : start % COUNT + BATCH])
    np.testing.assert_allclose(check.state[REACH], 0.5, rtol=1e-6)
    for _ in range(9):
        check(-source[:BATCH])
    assert float(check.state[REACH]) == 2.0**-6


@pytest.mark.parametrize("rests", [False, True])
def test_the_clock_is_due_at_every_tenth_step_but_in_a_rest(rests: bool) -> None:
    op = Builder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="clock"), "clock", OPSET)
    _, clock = check_clock(op, 10, rests=rests)
    assert clock.next is not None
    clock.next.name = f"{LEFT}.next"
    op.graph.outputs.append(clock.next)
    left, model = clock.initial, ir.Model(op.graph, ir_version=8)
    checked, rested, unlearned = [], [], []
    for step in range(1, 36):
        if left <= 0:
            checked.append(step)
            left = np.array((15 if step == 20 else 10) if rests else -10, np.float32)
        rested += [step] if left > 10 else []
        unlearned += [step] if left <= 0 else []
        left = run(model, {LEFT: left})[f"{LEFT}.next"]
    assert checked == ([10, 20, 35] if rests else [10, 20, 30])
    assert rested == (list(range(20, 25)) if rests else [])
    assert unlearned == ([] if rests else checked)


def test_images_are_stored_as_bytes_and_other_values_unchanged() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (COUNT, 3, 4, 4)).astype(np.float32)
    pixels[0, 0, 0, :2] = 0, 255
    images = Stored.of((pixels / 255 - 0.5) / 0.25, 0)
    series = Stored.of(random.standard_normal((COUNT, 7)).astype(np.float32), 0)
    shared = Stored.of(np.ones(3, np.float32), None)
    assert images.array.dtype == np.uint8 and series.array.dtype == np.float32
    np.testing.assert_allclose(images.values, (pixels / 255 - 0.5) / 0.25, atol=1e-5)
    zeros = np.zeros((COUNT, 1), np.float32)
    inputs = {"x": images, "s": series, "t": shared}
    check = CheckSet(inputs=inputs, classes=zeros.astype(np.uint8), batch=BATCH)
    outputs = run(sample_graph(check, OPSET).model, {TURN: np.array(1, np.float32)})
    np.testing.assert_allclose(outputs[sample("x")], images.values[2:4], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(outputs[sample("s")], series.array[2:4])
    np.testing.assert_array_equal(outputs[sample("t")], shared.array)


def test_trained_tensors_go_halfway_back() -> None:
    initial = np.random.default_rng(0).standard_normal(6, dtype=np.float32)
    tensor = StateTensor(name="a", role="parameter", initial=initial, value=ir.val("a", ir.DataType.FLOAT, (6,)))
    outputs = run(return_graph([tensor], OPSET).model, {"a": initial + 2})
    np.testing.assert_allclose(outputs["a.next"], initial + 1, rtol=1e-6, atol=1e-6)
