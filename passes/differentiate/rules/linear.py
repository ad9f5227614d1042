"""Gradients of matrix products."""

from __future__ import annotations

import string

import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient
from ttac.passes.differentiate.rules.facts import rank, refusal
from ttac.passes.graph.reshaping import expand, transpose
from ttac.passes.graph.shapes import dims, sample_size

Gradients = tuple[ir.Value | None, ...]


@gradient("Gemm", broadcasts=True)
def gemm(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = alpha*A*B + beta*c   ->   dA = alpha*dy*B^T,  dB = alpha*A^T*dy,  dc = beta*dy; A and B may be transposed."""
    a, b = node.inputs[:2]
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    flip_a, flip_b = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    da = db = dc = None
    if op.wants(0) and flip_a:
        da = op.Gemm(b, dy, alpha=alpha, transA=flip_b, transB=1)
    elif op.wants(0):
        da = op.Gemm(dy, b, alpha=alpha, transB=1 - flip_b)
    if op.wants(1) and flip_b:
        db = op.Gemm(dy, a, alpha=alpha, transA=1, transB=flip_a)
    elif op.wants(1):
        db = op.Gemm(a, dy, alpha=alpha, transA=1 - flip_a)
    if op.wants(2):
        dc = dy if beta == 1.0 else op.Mul(dy, beta)
    return (da, db, dc)[: len(node.inputs)]


@gradient("MatMul", broadcasts=True)
def matmul(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = a @ b   ->   da = dz @ b^T,  db = (dz^T @ a)^T; a vector is a row on the left, a column on the right.

    With this form of db, only `a` is a residual (the attention of all tokens to all), and not also a^T.
    """
    a, b = node.inputs
    assert a is not None and b is not None
    if rank(a) == 1 or rank(b) == 1:
        return _with_vector(op, a, b, dz)
    da = op.MatMul(dz, _swapped(op, b)) if op.wants(0) else None
    if not op.wants(1):
        return (da,)
    if rank(b) == 2:
        return da, op.Gemm(_rows(op, a), _rows(op, dz), transA=1)
    return da, _swapped(op, op.MatMul(_swapped(op, dz), a))


def _with_vector(op: GradientBuilder, a: ir.Value, b: ir.Value, dz: ir.Value) -> Gradients:
    """z = a . b over the last axis of `a` and the next to last of `b`; the walk sums over the other axes."""
    if rank(b) == 1:
        column = dz if rank(a) == 1 else op.Unsqueeze(dz, [-1])
        return op.Mul(column, b) if op.wants(0) else None, op.Mul(column, a) if op.wants(1) else None
    row, column = op.Unsqueeze(dz, [-2]), op.Unsqueeze(a, [1])
    da = op.ReduceSum(op.Mul(row, b), [-1], keepdims=0) if op.wants(0) else None
    return da, op.Mul(row, column) if op.wants(1) else None


def _swapped(op: GradientBuilder, x: ir.Value) -> ir.Value:
    last = rank(x) - 1
    return transpose(op, x, [*range(last - 1), last, last - 1])


def _rows(op: GradientBuilder, x: ir.Value) -> ir.Value:
    if rank(x) == 2:
        return x
    width = int(dims(x)[-1])
    flat = op.Reshape(x, [-1, width])
    if any(isinstance(size, str) for size in dims(x)):
        assert x.shape is not None
        flat.shape = ir.Shape([f"{sample_size(x.shape) // width}*N", width])
    return flat


@gradient("Einsum", broadcasts=True)
def einsum(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = contraction of a, b to the labels of z   ->   da = contraction of dz, b to those of a,  db likewise.

    A label that only `a` has was summed over; da repeats the gradient along this label.
    """
    terms, result = _labels(node)
    operands = list(zip(terms, node.inputs, strict=True))
    gradients: list[ir.Value | None] = []
    for position, (own, value) in enumerate(operands):
        others = operands[:position] + operands[position + 1 :]
        gradients.append(_contracted(op, dz, result, others, own, value) if op.wants(position) else None)
    return tuple(gradients)


def _contracted(
    op: GradientBuilder,
    dz: ir.Value,
    result: str,
    others: list[tuple[str, ir.Value | None]],
    own: str,
    value: ir.Value | None,
) -> ir.Value:
    known = {label for labels in (result, *(labels for labels, _ in others)) for label in labels}
    kept = "".join(label for label in own if label in known)
    equation = ",".join([result, *(labels for labels, _ in others)]) + "->" + kept
    contracted = (
        dz if not others and kept == result else op.Einsum(dz, *(other for _, other in others), equation=equation)
    )
    absent = [axis for axis, label in enumerate(own) if label not in known]
    if not absent:
        return contracted
    return expand(op, op.Unsqueeze(contracted, absent), dims(value), value)


def _labels(node: ir.Node) -> tuple[list[str], str]:
    """Return the labels of each operand and of the result, with letters in place of `...`.

    Raises UnsupportedError for a label that occurs twice in one term (a diagonal) or for a broadcast ellipsis.
    """
    equation = node.attributes.get_string("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = sorted(set(left) - set(",."))
        right = ("..." if "..." in left else "") + "".join(label for label in letters if left.count(label) == 1)
    free = [letter for letter in string.ascii_letters if letter not in equation]
    counts = {rank(v) - len(t) + 3 for t, v in zip(terms, node.inputs, strict=True) if "..." in t}
    if len(counts) > 1:
        raise refusal(node, f"the ellipsis in {equation!r} covers different numbers of axes")
    dots = "".join(free[: counts.pop() if counts else 0])
    terms, right = [term.replace("...", dots) for term in terms], right.replace("...", dots)
    if any(len(set(term)) < len(term) for term in (*terms, right)):
        raise refusal(node, f"a label occurs twice in one term of {equation!r}")
    return terms, right
