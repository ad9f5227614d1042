"""Model files that would expand without bound are refused before anything is expanded."""

from __future__ import annotations

import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from onnx.helper import (
    make_function,
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor_value_info,
)

from ttac.errors import UnsupportedError
from ttac.passes.load.limits import DEEPEST, refuse_unbounded
from ttac.passes.load.model_file import load

OPSETS = [make_opsetid("", 18), make_opsetid("local", 1)]


def chain(length: int, calls: int) -> onnx.ModelProto:
    """Functions f0 to f(length-1), each of which calls the next one `calls` times."""
    functions = []
    for i in range(length):
        name = f"f{i + 1}" if i + 1 < length else "Relu"
        domain = "local" if i + 1 < length else ""
        values = ["x", *(f"t{k}" for k in range(calls - 1)), "y"]
        nodes = [make_node(name, [a], [b], domain=domain) for a, b in pairwise(values)]
        functions.append(make_function("local", f"f{i}", ["x"], ["y"], nodes, OPSETS))
    return model([make_node("f0", ["x"], ["y"], domain="local")], functions)


def model(nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto] | None = None) -> onnx.ModelProto:
    x, y = (make_tensor_value_info(name, 1, ["N", 4]) for name in "xy")
    return make_model(make_graph(nodes, "g", [x], [y]), functions=functions or [], opset_imports=OPSETS, ir_version=9)


def test_doubling_functions_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnx"
    onnx.save(chain(40, 2), path)
    start = time.monotonic()
    with pytest.raises(UnsupportedError, match="expand to more than"):
        load(path)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(("length", "refused"), [(11, False), (12, True)])
def test_calls_of_one_function_are_counted(length: int, refused: bool) -> None:
    with pytest.raises(UnsupportedError, match="is called 2,048 times") if refused else nullcontext():
        refuse_unbounded(chain(length, 2), Path("m.onnx"))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_function_that_calls_itself_is_refused(length: int, tmp_path: Path) -> None:
    proto = chain(length, 1)
    last = proto.functions[-1].node[0]
    last.op_type, last.domain = "f0", "local"
    path = tmp_path / "loop.onnx"
    onnx.save(proto, path)
    with pytest.raises(UnsupportedError, match="calls itself"):
        load(path)


def test_functions_that_share_a_callee_are_no_loop() -> None:
    refuse_unbounded(chain(6, 3), Path("m.onnx"))


def test_deep_subgraphs_are_refused() -> None:
    y = make_tensor_value_info("y", 1, None)
    inner = make_graph([make_node("Relu", ["x"], ["y"])], "leaf", [], [y])
    for _ in range(DEEPEST + 1):
        inner = make_graph([make_node("If", ["c"], ["y"], then_branch=inner)], "level", [], [y])
    with pytest.raises(UnsupportedError, match="levels deep"):
        refuse_unbounded(model(list(inner.node)), Path("m.onnx"))
