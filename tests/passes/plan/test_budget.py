"""Planning within a memory budget: the order of the savings, the end of the search, and the refusals."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import ttac
from tests.support.halves import joint_of
from tests.support.source_models import saved, source
from tests.support.whole_models import MODELS, SINGLE, refused
from ttac import finish
from ttac import pipeline as driver
from ttac.errors import BudgetError, UsageError
from ttac.passes.differentiate.joint import Joint
from ttac.passes.graph.builder import Builder
from ttac.passes.partition.partition import partition
from ttac.passes.plan.budget import Spans, choose_smaller, plan_within
from ttac.passes.plan.decisions import Plan, nbytes
from ttac.passes.plan.liveness import bytes_over_time, peak

BATCH = 64


@pytest.fixture(scope="module")
def joint() -> Joint:
    return joint_of(MODELS["densenet"])[0]


def within(joint: Joint, goal: int) -> tuple[Plan, bool]:
    graph = joint.model.graph
    return plan_within(graph, joint.backward, list(graph.inputs), BATCH, goal)


def ways(plan: Plan) -> list[str]:
    return [row.how for row in plan.decisions]


def planned_peak(joint: Joint, plan: Plan) -> int:
    """The highest moment of both halves, run one after the other."""
    halves = partition(joint.model, [joint.logits], joint.gradients, plan)
    assert halves.backward is not None
    return peak({"forward": halves.forward, "backward": halves.backward}, ["forward", "backward"], BATCH).bytes


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_output_is_handed_out_as_it_is(joint: Joint) -> None:
    graph = joint.model.graph
    plan, _ = plan_within(graph, joint.backward, list(graph.inputs), 64 * BATCH, 0)
    how = {row.value: row.how for row in plan.decisions}
    assert how[str(joint.logits.name)] == "dense" and "int8" in how.values()


def test_enough_memory_changes_nothing(joint: Joint) -> None:
    plan, more = within(joint, 1 << 40)
    assert more and plan.is_exact and set(ways(plan)) <= {"dense", "recompute"}


def test_no_memory_at_all_makes_everything_small(joint: Joint) -> None:
    plan, more = within(joint, 0)
    assert not more and not plan.is_exact
    values = {str(value.name): value for node in joint.model.graph for value in node.outputs}
    large = [row for row in plan.decisions if row.how == "dense" and row.bytes >= 16 * 1024]
    spans = Spans(joint.model.graph, set(joint.backward))
    assert not [row.value for row in large if spans.of(values[row.value])]
    assert ways(plan).count("int8") > 3 and "bits" in ways(plan)


def test_less_memory_costs_more_rounding_and_never_more_bytes(joint: Joint) -> None:
    """From one goal to the next, bytes fall, int8 rows grow, and the peak of the halves follows the goal down."""
    dense = planned_peak(joint, within(joint, 1 << 40)[0])
    before: tuple[int, int] | None = None
    peaks = []
    for share in (1.0, 0.8, 0.6, 0.4, 0.2, 0.0):
        plan, _ = within(joint, int(share * dense))
        now = plan.bytes, -ways(plan).count("int8")
        assert before is None or (now[0] <= before[0] and now[1] <= before[1]), share
        peaks.append(planned_peak(joint, plan))
        before = now
    assert peaks[-1] < 0.6 * peaks[0] and all(later <= 1.05 * earlier for earlier, later in pairwise(peaks))


def test_the_value_kept_through_the_peak_shrinks_first() -> None:
    """Of three values one spans the highest moment alone; the largest of those at a moment is taken."""
    x = ir.val("x", SINGLE, ["N", 64, 8, 8])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="joint")
    op = Builder(graph, "test")
    a = op.Relu(x, name="a")
    b = op.Relu(a, name="b")
    top = op.Relu(b, name="top")
    late = [op.Mul(top, b, name="first"), op.Mul(top, a, name="second")]
    backward = {value.producer() for value in late}
    spans = Spans(graph, backward)  # type: ignore[arg-type]
    assert spans.of(a) == (2, 4) and spans.of(b) is None and spans.of(top) is None and spans.of(late[0]) is None
    size = nbytes(a, 8)
    alive = np.array([size, 2 * size, 3 * size, 3 * size, 2 * size])
    assert choose_smaller(spans, [a, b], alive, 8, 3 * size) == set()
    assert choose_smaller(spans, [a, b], alive, 8, 3 * size - 1) == {"a"}
    # A goal that cannot be reached takes all that can be had; the input is left as it was.
    assert choose_smaller(spans, [a, b], alive, 8, 0) == {"a"} and alive[2] == 3 * size


def test_the_bytes_over_time_are_those_of_the_nodes(joint: Joint) -> None:
    alive = bytes_over_time(joint.model.graph, BATCH)
    assert len(alive) == len(list(joint.model.graph)) and (alive >= 0).all()
    assert alive.max() > sum(nbytes(value, BATCH) for value in joint.model.graph.inputs) // 100
    assert (bytes_over_time(joint.model.graph, 2 * BATCH) >= alive).all()


# --- planned, measured, and planned again -----------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODELS["densenet"].read_bytes())
    return path


def measuring(monkeypatch: pytest.MonkeyPatch, peaks: Iterator[int]) -> list[int]:
    """Let the measurement give these peaks, one after the other; returns those it gave."""
    given: list[int] = []

    def measure(*_: Any, **__: Any) -> dict[str, Any]:
        given.append(next(peaks))
        return {"peak": given[-1], "loaded": 0, "seconds": 0.0}

    monkeypatch.setattr(finish, "measure", measure)
    return given


def counting(first: int, step: int) -> Iterator[int]:
    while True:
        yield first
        first -= step


@pytest.mark.slow
def test_it_is_planned_again_until_it_fits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = measuring(monkeypatch, counting(10 << 20, 2 << 20))
    said: list[str] = []
    bundle = ttac.compile(model, batch=32, memory_budget="6MiB", say=said.append, dry_run=True)
    assert given == [10 << 20, 8 << 20, 6 << 20]
    assert bundle.manifest["memory"]["measured"]["peak"] == 6 << 20
    assert [line.strip() for line in said if "planned again" in line] == [
        "needs 10.0 MiB: planned again", "needs 8.00 MiB: planned again",
    ]  # fmt: skip


@pytest.mark.slow
def test_in_the_end_it_is_refused_for_the_least_there_is(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = measuring(monkeypatch, counting(10 << 20, 1))
    said = refused(BudgetError, model, batch=32, memory_budget="6MiB")
    assert 2 <= len(given) <= driver.TRIES
    rows = [line for line in said.splitlines() if line.endswith(("int8", "bits", "dense"))]
    assert len(rows) == 5 and all(row.endswith("int8") for row in rows)
    # Five per cent above the bytes of the smallest plan.
    assert "the least budget that works is about `--memory-budget 10.5MiB`" in said


@pytest.mark.slow
def test_without_a_budget_nothing_is_planned_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = measuring(monkeypatch, counting(10 << 40, 1))
    assert "memory of target `cpu`" in refused(BudgetError, model, batch=32)
    assert len(given) == 1


@pytest.mark.parametrize("budget", ["a lot", "64Mb.", "-5", "0", -1, 0, "1e"])
def test_a_budget_that_is_no_size(budget: Any, tmp_path: Path) -> None:
    refused(UsageError, saved(source(), tmp_path), memory_budget=budget)
