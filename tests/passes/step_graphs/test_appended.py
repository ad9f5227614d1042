"""A graph appended to another: values that the host makes are joined, the rest becomes inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ttac.passes.graph.execute import run
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.appended import append
from ttac.passes.step_graphs.context import MethodGraph, finished, new_graph, read

ONE = np.ones((), np.float32)


def host() -> ir.Model:
    """The sum a + b."""
    op = new_graph("host", 18)
    a, b = read(op, "a", ()), read(op, "b", ())
    return finished(op, {"sum": op.Add(op.Add(a, b), 0.0)}).model


def guest(result: str = "product") -> MethodGraph:
    """The sum times b times the state; the state grows by 1."""
    op = new_graph("guest", 18)
    total, b, state = read(op, "sum", ()), read(op, "b", ()), state_input(op.graph, "state", ONE)
    product = op.Mul(op.Mul(total, b), state)
    kept = StateTensor(name="state", role="counter", initial=ONE, value=state, next=op.Add(state, 1.0))
    return finished(op, {result: product}, [kept], {result: "reported"})


def test_values_of_the_host_are_joined() -> None:
    model = host()
    joined = append(model, guest())
    assert [str(value.name) for value in model.graph.inputs] == ["a", "b", "state"]
    outputs = run(model, {"a": ONE, "b": np.full((), 2, np.float32), "state": np.full((), 5, np.float32)})
    assert {name: float(value) for name, value in outputs.items()} == {"sum": 3, "product": 30, "state.next": 6}
    assert joined.model is model and joined.moves == {"state.next": "state"} and joined.stats == {"product": "reported"}


def test_state_that_both_read_is_one_input() -> None:
    model = host()
    b = model.graph.inputs[1]
    op = new_graph("guest", 18)
    value = state_input(op.graph, "b", ONE)
    moved = StateTensor(name="b", role="counter", initial=ONE, value=value, next=op.Add(value, 1.0))
    joined = append(model, finished(op, {}, [moved]))
    assert joined.state[0].value is b
    assert float(run(model, {"a": ONE, "b": ONE})["b.next"]) == 2


def test_two_values_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="sum"):
        append(host(), guest("sum"))
