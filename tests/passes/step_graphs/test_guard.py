"""The guard's formulas, restated in NumPy: information of a batch, resets, and the bound on the drift."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.execute import run
from ttac.passes.graph.state import StateTensor
from ttac.passes.step_graphs.batch_information import WINDOW
from ttac.passes.step_graphs.context import Context
from ttac.passes.step_graphs.guard import guard, hold
from ttac.passes.step_graphs.optimizers import update_graph

SETTINGS = {"guard": "on", "guard_radius": 0.1, "guard_information": 0.5, "guard_patience": 3, "guard_period": 0}
CLASSES = 5


class Guard:
    """The graph `guard` and the graph of held batches, with their state."""

    def __init__(
        self,
        usual: float,
        head: Head | None = None,
        shape: tuple[int | str, ...] | None = None,
        *,
        given: bool = True,
        reach: str = "",
        **settings: Any,
    ) -> None:
        self.head = head = head or Head(kind="classes", shape=("N", CLASSES), axis=1, values="logits")
        context = Context(
            parameters=(), gradients=(), logits="z", head=head, settings={**SETTINGS, **settings}, opset=18,
            logits_are_probabilities=head.values == "probabilities", reach=reach,
        )  # fmt: skip
        judged = guard(context, "entropy" if given else "", usual, shape)
        self.graphs = judged, hold(judged, context.settings, context.opset)
        self.state = {tensor.name: tensor.initial for graph in self.graphs for tensor in graph.state}

    def __call__(self, scores: np.ndarray, entropy: float = 0.0, **given: float) -> dict[str, np.ndarray]:
        scalars = {name: np.array(value, np.float32) for name, value in {"entropy": entropy, **given}.items()}
        outputs: dict[str, np.ndarray] = {"z": scores, **scalars}
        for number, graph in enumerate(self.graphs):
            early = outputs.get("guard.clock.next", np.ones(1)) > 0
            if number and early and not outputs["guard.row.next"] > 0:
                continue
            read = {str(value.name) for value in graph.model.graph.inputs}
            fed = {name: value for name, value in {**self.state, **outputs}.items() if name in read}
            outputs |= run(graph.model, fed)
            self.state.update({name: outputs[output] for output, name in graph.moves.items()})
        return outputs


def entropy_of(p: np.ndarray) -> np.ndarray:
    return np.asarray(-(p * np.log(p + 1e-12)).sum(-1))


def batch(count: int, seed: int, size: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    scores = (size * np.random.default_rng(seed).standard_normal((count, CLASSES))).astype(np.float32)
    p = np.exp(scores - scores.max(1, keepdims=True))
    return scores, p / p.sum(1, keepdims=True)


def test_information_of_a_whole_window() -> None:
    judge = Guard(usual=1.0)
    scores, p = batch(WINDOW, 0)
    outputs = judge(scores, float(entropy_of(p).mean()))
    expected = entropy_of(p.mean(0)) - entropy_of(p).mean()
    np.testing.assert_allclose(outputs["guard.information"], expected, rtol=1e-5)
    assert (outputs["guard.row.next"] == 0) == (expected >= 0.5)


@pytest.mark.parametrize("values", ["logits", "probabilities"])
def test_information_without_an_entropy_of_the_loss(values: str) -> None:
    head = Head(kind="classes", shape=("N", CLASSES), axis=1, values=values)  # type: ignore[arg-type]
    scores, p = batch(WINDOW, 0)
    outputs = Guard(usual=1.0, head=head, given=False)(scores if values == "logits" else p)
    expected = entropy_of(p.mean(0)) - entropy_of(p).mean()
    np.testing.assert_allclose(outputs["guard.information"], expected, rtol=1e-5)


def test_information_of_pixels_without_an_entropy_of_the_loss() -> None:
    head = Head(kind="dense", shape=("N", CLASSES, 3, 2), axis=1, values="logits")
    scores = 3 * np.random.default_rng(0).standard_normal((WINDOW, CLASSES, 3, 2), dtype=np.float32)
    p = np.moveaxis(np.exp(scores.astype(np.float64)), 1, -1)
    p = p / p.sum(-1, keepdims=True)
    expected = entropy_of(p.mean((0, 1, 2))) - entropy_of(p).mean()
    np.testing.assert_allclose(
        Guard(usual=1.0, head=head, given=False)(scores)["guard.information"], expected, rtol=1e-4
    )


def test_scores_joined_with_coordinates_are_read_alone() -> None:
    """Boxes of four coordinates and two yes-or-no scores: the information is that of the scores."""
    head = Head(kind="detection", shape=("N", 3, 2), axis=2, values="probabilities", first=4)
    judge = Guard(usual=0.3, head=head, shape=("N", 3, 6))
    joined = np.random.default_rng(0).random((WINDOW, 3, 6), np.float32)
    p = joined[..., 4:].astype(np.float64)
    level = float(entropy_of(np.stack([1 - p, p], -1)).mean())
    mean = p.mean((0, 1))
    expected = entropy_of(np.stack([1 - mean, mean], -1)).mean() - level
    np.testing.assert_allclose(judge(joined, level)["guard.information"], expected, rtol=1e-4)


def test_small_batches_are_averaged() -> None:
    judge = Guard(usual=1.0)
    mean, level = np.full(CLASSES, 1 / CLASSES), np.log(CLASSES) - 1.0
    for seed in range(6):
        scores, p = batch(4, seed)
        mean += 4 / WINDOW * (p.mean(0) - mean)
        level += 4 / WINDOW * (entropy_of(p).mean() - level)
        outputs = judge(scores, float(entropy_of(p).mean()))
        np.testing.assert_allclose(outputs["guard.information"], entropy_of(mean) - level, rtol=1e-4, atol=1e-5)


def test_information_of_answers() -> None:
    judge = Guard(usual=0.3, head=Head(kind="binary", shape=("N", 2), axis=1, values="logits"))
    scores = np.random.default_rng(0).standard_normal((WINDOW, 2)).astype(np.float32) * 3
    s = 1 / (1 + np.exp(-scores.astype(np.float64)))
    both = np.stack([1 - s, s], -1)
    expected = entropy_of(both.mean(0)).mean() - entropy_of(both).mean()
    outputs = judge(scores, float(entropy_of(both).mean()))
    np.testing.assert_allclose(outputs["guard.information"], expected, rtol=1e-4)
    own = Guard(usual=0.3, head=judge.head, given=False)(scores)
    np.testing.assert_allclose(own["guard.information"], expected, rtol=1e-4)


def test_equal_predictions_are_held_and_reset() -> None:
    judge = Guard(usual=1.0)
    scores = np.repeat(batch(1, 0)[0], WINDOW, 0)
    level = float(entropy_of(batch(1, 0)[1])[0])
    found = [judge(scores, level) for _ in range(4)]
    assert [float(one["guard.row.next"]) for one in found] == [1, 2, 3, 4]
    assert [float(one["guard.reset"]) for one in found] == [0, 0, 1, 1]
    assert float(judge.state["guard.held"]) == 4
    assert float(judge.state["guard.resets"]) == 2


def test_a_batch_that_is_no_number_is_held() -> None:
    judge = Guard(usual=1.0)
    before = dict(judge.state)
    outputs = judge(np.full((WINDOW, CLASSES), np.nan, np.float32), float("nan"))
    assert float(outputs["guard.row.next"]) == 1
    assert all(np.isfinite(value).all() for value in judge.state.values())
    np.testing.assert_array_equal(judge.state["guard.averages"], before["guard.averages"])


@pytest.mark.parametrize("reach", [0.0, 1.0])
def test_a_batch_out_of_reach_is_held(reach: float) -> None:
    """Its information is that of a good batch."""
    scores, p = batch(WINDOW, 0)
    outputs = Guard(usual=1.0, reach="near")(scores, float(entropy_of(p).mean()), near=reach)
    assert float(outputs["guard.row.next"]) == 1 - reach


def test_a_part_of_zero_holds_numbers_never() -> None:
    """Equal predictions have no information, which rounding can make negative; NaN is no number."""
    judge, equal = Guard(usual=1.0, guard_information=0.0), np.repeat(batch(1, 0)[0], WINDOW, 0)
    assert float(judge(equal, float(entropy_of(batch(1, 0)[1])[0]) + 1e-3)["guard.row.next"]) == 0
    assert float(judge(np.full_like(equal, np.nan), float("nan"))["guard.row.next"]) == 1


def test_without_calibration_the_first_batch_counts() -> None:
    judge = Guard(usual=0.0)
    scores, p = batch(WINDOW, 0)
    outputs = judge(scores, float(entropy_of(p).mean()))
    assert float(outputs["guard.row.next"]) == 0
    np.testing.assert_allclose(judge.state["guard.usual"], outputs["guard.information"])
    assert float(judge(scores * 0, float(np.log(CLASSES)))["guard.row.next"]) == 1


def test_the_period_resets() -> None:
    judge = Guard(usual=1.0, guard_period=2)
    scores, p = batch(WINDOW, 0)
    found = [judge(scores, float(entropy_of(p).mean())) for _ in range(2)]
    assert [float(one["guard.clock.next"]) for one in found] == [1, 0]
    assert "guard.reset" not in found[0] and float(found[1]["guard.reset"]) == 1
    assert float(judge.state["guard.held"]) == 0


@pytest.mark.parametrize("rate", [0.001, 0.5, 1e4])
def test_parameters_stay_within_the_radius(rate: float) -> None:
    initial = np.random.default_rng(0).standard_normal(6, dtype=np.float32)
    tensor = StateTensor(name="a", role="parameter", initial=initial, value=ir.val("a", ir.DataType.FLOAT, (6,)))
    sgd = {"optimizer": "sgd", "lr": rate, "momentum": 0.0, "nesterov": False}
    made = update_graph([tensor], ["g"], {**SETTINGS, **sgd}, 18)
    outputs = run(made.model, {"a": initial, "g": np.ones(6, np.float32)})
    moved, length = -rate * np.ones(6), np.linalg.norm(initial)
    expected = initial + moved * min(1.0, 0.1 * length / np.linalg.norm(moved))
    np.testing.assert_allclose(outputs["a.next"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs["guard.drift"], min(0.1, np.linalg.norm(moved) / length), rtol=1e-3)
