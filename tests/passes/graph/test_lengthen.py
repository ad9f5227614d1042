"""A longer axis in a graph: the shapes of all nodes behind it, and the nodes that cannot follow."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ttac.errors import UnsupportedError
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.lengthen import lengthen
from ttac.passes.graph.shapes import dims


def begun(*shape: int | str) -> tuple[Builder, ir.Value, ir.Value]:
    """Return a builder, a value `x` of the shape, and its place in the graph for a longer value."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape(list(shape)))
    op = Builder(ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="tokens"), "test", 20)
    tokens = op.Identity(x)
    return op, x, tokens


def lengthened(op: Builder, tokens: ir.Value) -> None:
    """Put two more tokens at the end, in front of all readers."""
    more = np.zeros((1, 2, dims(tokens)[2]), np.float32)  # type: ignore[arg-type]
    with op.at("longer", before=next(iter(tokens.uses())).node):
        longer = op.Concat(tokens, op.Expand(more, np.array([3, 2, 4], np.int64)), axis=1)
    longer.shape = ir.Shape(["N", 7, *dims(tokens)[2:]])
    lengthen(op, tokens, longer, 1)


def targets(op: Builder) -> list[list[int]]:
    """Return the constant shapes of the Reshape nodes."""
    found = []
    for node in op.graph:
        value = node.inputs[1] if node.op_type == "Reshape" else None
        if value is not None and value.const_value is not None:
            found.append(value.const_value.numpy().tolist())
    return found


def test_reshapes_keep_batch_heads_and_width() -> None:
    """The axis of 5 tokens becomes 7, also where batch and heads are one axis, and where tokens and batch are."""
    op, _, tokens = begun("N", 5, 4)
    heads = op.Reshape(tokens, [-1, 5, 2, 2])
    heads.shape = ir.Shape(["N", 5, 2, 2])
    apart = op.Transpose(heads, perm=[0, 2, 1, 3])
    together = op.Reshape(apart, [-1, 5, 2])
    together.shape = ir.Shape(["2*N", 5, 2])
    rows = op.Reshape(together, [-1, 2])
    rows.shape = ir.Shape(["10*N", 2])
    back = op.Reshape(rows, [-1, 2, 5, 2])
    back.shape = ir.Shape(["N", 2, 5, 2])
    lengthened(op, tokens)
    assert targets(op) == [[-1, 7, 2, 2], [-1, 7, 2], [-1, 2], [-1, 2, 7, 2]]
    assert [dims(value) for value in (heads, apart, together, rows, back)] == [
        ["N", 7, 2, 2], ["N", 2, 7, 2], ["2*N", 7, 2], ["14*N", 2], ["N", 2, 7, 2]
    ]  # fmt: skip


def test_the_width_of_the_same_size_stays() -> None:
    op, _, tokens = begun("N", 4, 4)
    split = op.Reshape(tokens, [-1, 4, 2, 2])
    split.shape = ir.Shape(["N", 4, 2, 2])
    with op.at("longer", before=next(iter(tokens.uses())).node):
        longer = op.Concat(tokens, tokens, axis=1)
    lengthen(op, tokens, longer, 1)
    assert targets(op) == [[-1, 8, 2, 2]] and dims(split) == ["N", 8, 2, 2]


def test_nodes_with_the_old_length_are_refused() -> None:
    """A table of 5 positions, a map of tokens, and a part of the tokens."""
    for read in (
        lambda op, tokens: op.Add(tokens, np.ones((5, 4), np.float32)),
        lambda op, tokens: op.Slice(tokens, [1], [5], [1]),
        lambda op, tokens: op.Gather(tokens, 4, axis=1),
        lambda op, tokens: op.Split(tokens, [2, 3], axis=1, outputs=2)[0],
    ):
        op, _, tokens = begun("N", 5, 4)
        read(op, tokens)
        with pytest.raises(UnsupportedError, match="fixed to the number of tokens"):
            lengthened(op, tokens)


def test_parts_of_another_axis_are_as_long() -> None:
    """Query, key and value of attention, split along the width."""
    op, _, tokens = begun("N", 5, 4)
    parts = op.Split(tokens, [1, 3], axis=2, outputs=2)
    lengthened(op, tokens)
    assert [dims(part) for part in parts] == [["N", 7, 1], ["N", 7, 3]]


def test_the_first_token_and_all_others_can_be_read() -> None:
    op, _, tokens = begun("N", 5, 4)
    first, rest = op.Gather(tokens, 0, axis=1), op.Slice(tokens, [1], [2**63 - 1], [1])
    lengthened(op, tokens)
    assert (dims(first), dims(rest)) == (["N", 4], ["N", 6, 4])
