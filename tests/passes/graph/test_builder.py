"""The builder of nodes: types by inference, asked once."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ttac.errors import UnsupportedError
from ttac.passes.graph.builder import Builder


def builder(*shapes: tuple[int | str, ...]) -> tuple[Builder, list[ir.Value]]:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="graph")
    values = [ir.val(f"x{i}", ir.DataType.FLOAT, shape) for i, shape in enumerate(shapes)]
    graph.inputs.extend(values)
    return Builder(graph, "test"), values


def test_a_split_into_thousands_has_shapes() -> None:
    """The update of a net with more than five hundred norms splits one vector into their scales and biases."""
    op, (x,) = builder((3000,))
    parts = op.Split(x, [1, 2] * 1000, axis=0, outputs=2000)
    assert [list(part.shape or []) for part in parts] == [[1], [2]] * 1000


def test_the_same_question_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    infer = onnx.shape_inference.infer_node_outputs

    def counted(schema: onnx.defs.OpSchema, *rest: object, **options: object) -> object:
        asked.append(schema.name)
        return infer(schema, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx.shape_inference, "infer_node_outputs", counted)
    op, (a, b, c) = builder(("N", 37, 41), ("N", 37, 41), ("N", 37, 43))
    first, second, third = (op.Transpose(value, perm=[0, 2, 1]) for value in (a, b, c))
    other = op.Transpose(a, perm=[2, 1, 0])
    assert asked == ["Transpose"] * 3
    assert [list(v.shape.dims) for v in (first, second, third, other)] == [
        ["N", 41, 37], ["N", 41, 37], ["N", 43, 37], [41, 37, "N"]
    ]  # fmt: skip
    assert first.shape is not second.shape


def test_what_a_constant_holds_is_part_of_the_question() -> None:
    op, (x,) = builder((6, 35))
    assert list(op.Reshape(x, [35, 6]).shape.dims) == [35, 6]
    assert list(op.Reshape(x, [5, 42]).shape.dims) == [5, 42]
    assert list(op.Reshape(x, np.array([42, 5])).shape.dims) == [42, 5]


def test_an_operator_that_does_not_fit_is_refused_every_time() -> None:
    op, (a, b) = builder((2, 3), (4, 5))
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="cannot type `MatMul`"):
            op.MatMul(a, b)
