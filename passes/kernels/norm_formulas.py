"""The formulas of a norm's gradient, to recognise them in a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.match import array_of, only_reader
from ttac.passes.graph.shapes import dims
from ttac.passes.kernels.linked_graphs import LinkedGraphs
from ttac.passes.kernels.norm_forward import Norm
from ttac.passes.kernels.terms import VECTORS, Terms


@dataclass(frozen=True, kw_only=True)
class Sums:
    """The sums of one gradient of a norm, as values of the plain graphs, and the first nodes that read du.

    Attributes:
        reciprocal: 1/sqrt(variance + epsilon), in a graph that has `dscale`.
    """

    norm: Norm
    du: ir.Value
    dbias: ir.Value
    dscale: ir.Value
    reciprocal: ir.Value
    readers: Sequence[ir.Node]


@dataclass(frozen=True, kw_only=True)
class InputGradient:
    """The gradient of a norm's input.

    Attributes:
        total: dx, or the sum of dx and `more`.
        more: another gradient of the same value, such as that of a skip connection; None for none.
        apart: whether an Add behind the node adds `more`, because that waits for a result of the node.
        scale: of the norm, in the graph of `total`.
    """

    total: ir.Value
    more: ir.Value | None
    apart: bool = False
    scale: ir.Value


Way = Callable[[ir.Value, ir.Value], bool | None]
"""Whether a value joins a total in an Add of its own, and not in the node for dx; None where it cannot join."""


def both(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """The operands of a node with two of them, in either order."""
    a, b = node.inputs
    return [(a, b), (b, a)]


class Expected:
    """The formulas of `rules/channels.py` for one norm."""

    def __init__(self, graphs: LinkedGraphs, norm: Norm) -> None:
        self._graphs, self._norm = graphs, norm
        self._terms = Terms(VECTORS)
        names = {"mean": norm.mean, "var": norm.variance}
        self._atoms: dict[ir.Value, int] = {value: self._terms.term(name) for name, value in names.items()}
        term, epsilon = self._terms.term, self._terms.scalar(float(np.float32(norm.epsilon)))
        self._r = term("Reciprocal", term("Sqrt", term("Add", term("var"), epsilon)))

    def is_r(self, value: ir.Value | None) -> bool:
        """Whether `value` is 1/sqrt(variance + epsilon)."""
        return self._terms.of(self._graphs, value, self._atoms) == self._r

    def scale_of(self, affine: ir.Node) -> ir.Value | None:
        """The norm's scale, where `affine` is the part du*scale*r of dx."""
        if affine.op_type != "BatchNormalization" or not is_affine(affine):
            return None
        slope = self._graphs.made_by(affine.inputs[1], "Mul")
        return next((b for a, b in both(slope) if self.is_r(a)), None) if slope is not None else None

    def input_gradient(self, sums: Sums, affine: ir.Node, way: Way) -> InputGradient | None:
        """The gradient whose part du*scale*r is `affine`; None if the other part is not as expected."""
        scale = self.scale_of(affine)
        if scale is None:
            return None
        for total, rest, more in self._totals(affine.outputs[0]):
            apart = way(total, more) if more is not None else False
            if apart is None or not self._is_rest(sums, rest, scale):
                continue
            outer = self._added(total) if more is None else None
            if outer is not None and way(*outer) is False:
                total, more = outer
            return InputGradient(total=total, more=more, apart=apart, scale=scale)
        return None

    def _totals(self, part: ir.Value) -> Iterator[tuple[ir.Value, ir.Value | None, ir.Value | None]]:
        """Sums of `part` and a second value, or also a third one, in any order of the additions."""
        for node in self._graphs.readers(part):
            if node.op_type != "Add":
                continue
            total, second = node.outputs[0], self._beside(node, part)
            yield total, second, None
            inner = second.producer() if second is not None else None
            if inner is not None and inner.op_type == "Add" and only_reader(inner.outputs[0], "Add") is node:
                for a, b in both(inner):
                    yield total, a, b
            if (outer := self._added(total)) is not None:
                yield outer[0], outer[1], second

    def _added(self, value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
        """The sum that alone reads `value`, and its other operand."""
        node = only_reader(value, "Add")
        other = self._beside(node, value) if node is not None else None
        return (node.outputs[0], other) if node is not None and other is not None else None

    def _beside(self, node: ir.Node, value: ir.Value) -> ir.Value | None:
        return next((b for a, b in both(node) if self._graphs.source(a) is self._graphs.source(value)), None)

    def _is_rest(self, sums: Sums, value: ir.Value | None, scale: ir.Value) -> bool:
        """Whether `value` is the part of dx through the statistics: x*factor + offset."""
        rest = self._graphs.made_by(value, "BatchNormalization")
        if rest is None or not is_affine(rest):
            return False
        if self._graphs.source(rest.inputs[0]) is not self._graphs.source(self._norm.x):
            return False
        return self.numbers(sums, rest.inputs[1:3]) == self.rest(sums, scale)

    def numbers(self, sums: Sums, values: Sequence[ir.Value | None]) -> list[int]:
        """The numbers of `values`, to compare with those of `rest`."""
        return [self._terms.of(self._graphs, value, self._known(sums)) for value in values]

    def _known(self, sums: Sums) -> dict[ir.Value, int]:
        return {**self._atoms, sums.dbias: self._terms.term("dbias"), sums.dscale: self._terms.term("dscale")}

    def rest(self, sums: Sums, scale: ir.Value) -> list[int]:
        """The numbers of factor and offset in the part x*factor + offset of dx."""
        t, atoms = self._terms.term, self._known(sums)
        spatial = float(np.prod([float(size) for size in dims(self._norm.x)[2:]]))
        count = t("batch", dims(self._norm.x)[0])
        count = t("Mul", count, self._terms.scalar(spatial))
        slope = t("Mul", self._terms.of(self._graphs, scale, atoms), self._r)
        half, two = self._terms.scalar(-0.5), self._terms.scalar(2.0)
        dvar = t("Mul", t("Mul", t("Mul", slope, self._r), t("dscale")), half)
        factor = t("Div", t("Mul", dvar, two), count)
        shift = t("Div", t("Neg", t("Mul", slope, t("dbias"))), count)
        offset = t("Add", t("Neg", t("Mul", factor, t("mean"))), shift)
        return [factor, offset]


def is_affine(node: ir.Node) -> bool:
    """Whether a BatchNormalization is x*scale + offset: mean 0, variance 1, epsilon 0."""
    if node.op_type != "BatchNormalization" or node.attributes.get_float("epsilon", 1e-5) != 0:
        return False
    mean, variance = array_of(node.inputs[3]), array_of(node.inputs[4])
    return mean is not None and variance is not None and not mean.any() and bool((variance == 1).all())
