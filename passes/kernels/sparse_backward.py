"""The gradient of a norm whose input is kept by the codec `blocks`: one node for the mask, the sums and dx."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.kernels.expected import expected
from ttac.passes.kernels.kept_blocks import PARTS, Saved
from ttac.passes.kernels.linked_graphs import LinkedGraphs
from ttac.passes.kernels.norm_backward import (
    Gradient,
    local,
    mask_product,
    replace_all,
    sums_of,
)
from ttac.passes.kernels.norm_formulas import Expected, InputGradient, Sums
from ttac.passes.kernels.norm_forward import Norm
from ttac.passes.kernels.terms import BLOCKS, Terms
from ttac.passes.plan.codecs.block_layout import block_of
from ttac.passes.plan.codecs.block_readers import affine, dot


def fuse_sparse_backward(graphs: LinkedGraphs, norms: Sequence[Norm], saved: Sequence[Saved]) -> None:
    """Replace the gradient of every norm whose input is among `saved`."""
    kept = {graphs.source(each.x): each for each in saved}
    sparse = [norm for norm in norms if graphs.source(norm.x) in kept]
    finder = _Finder(graphs, kept)
    found = [
        (kept[graphs.source(sums.norm.x)], finder.gradient(sums))
        for node in graphs.nodes("Sub")
        if (sums := sums_of(graphs, node, sparse, finder.dot)) is not None
    ]
    replace_all(graphs, [pair for each, gradient in found for pair in _insert(graphs, each, gradient)])


class _Finder:
    """Recognises what the readers of the codec expand to."""

    def __init__(self, graphs: LinkedGraphs, kept: dict[ir.Value | None, Saved]) -> None:
        self._graphs, self._kept = graphs, kept
        self._terms = Terms(BLOCKS)

    def dot(self, value: ir.Value | None, norm: Norm, du: ir.Value) -> Sequence[ir.Node] | None:
        """The nodes that read `du`, where `value` is the sum of du*x; None if it is not."""
        each = self._kept[self._graphs.source(norm.x)]
        operands = {**each.parts, "x": each.x, "du": du}
        (wanted,) = expected(
            self._terms, operands, lambda op, *v: [dot(op, v[: len(PARTS)], v[len(PARTS)], v[len(PARTS) + 1])]
        )
        if self._terms.of(self._graphs, value, self._atoms(each, du=du)) != wanted:
            return None
        return [node for node in self._graphs.readers(du) if node.op_type == "Reshape"]

    def _atoms(self, each: Saved, **more: ir.Value | None) -> dict[ir.Value, int]:
        named = {**each.parts, **more}
        return {self._graphs.source(value): self._terms.term(name) for name, value in named.items()}  # type: ignore[misc]

    def gradient(self, sums: Sums) -> Gradient:
        """All parts of the gradient with these sums."""
        graphs, wanted = self._graphs, Expected(self._graphs, sums.norm)
        known, found = list(sums.readers), None
        for reader in graphs.readers(sums.du):
            slope = wanted.scale_of(reader)
            end = self._end(reader.outputs[0]) if slope is not None else None
            if end is not None and slope is not None and self._is_input_gradient(wanted, sums, reader, end, slope):
                found = InputGradient(total=end.outputs[0], more=None, scale=slope)
                known.append(reader)
        return Gradient(sums=sums, mask=mask_product(graphs, sums), input=found, known=known)

    def _end(self, plus: ir.Value) -> ir.Node | None:
        """The last node of the map that adds x*factor + offset to `plus`."""
        value = plus
        node: ir.Node | None = None
        for op_type in ("Reshape", "Add", "ScatterND", "Reshape"):
            node = next((reader for reader in self._graphs.readers(value) if reader.op_type == op_type), None)
            if node is None:
                return None
            value = node.outputs[0]
        return node

    def _is_input_gradient(self, wanted: Expected, sums: Sums, plus: ir.Node, end: ir.Node, scale: ir.Value) -> bool:
        each = self._kept[self._graphs.source(sums.norm.x)]
        coefficients = self._coefficients(end)
        if coefficients is None:
            return False
        factor, offset = coefficients
        if wanted.numbers(sums, coefficients) != wanted.rest(sums, scale):
            return False
        operands = {**each.parts, "x": each.x, "factor": factor, "offset": offset, "plus": plus.outputs[0]}
        (number,) = expected(
            self._terms,
            operands,
            lambda op, *v: [affine(op, v[: len(PARTS)], v[len(PARTS)], *v[len(PARTS) + 1 :])],
        )
        atoms = self._atoms(each, factor=factor, offset=offset, plus=plus.outputs[0])
        return self._terms.of(self._graphs, end.outputs[0], atoms) == number

    def _coefficients(self, end: ir.Node) -> tuple[ir.Value, ir.Value] | None:
        """Factor and offset in the level of each block: mean*factor + offset."""
        value: ir.Value | None = end.outputs[0]
        steps = (("Reshape", 0), ("ScatterND", 0), ("Add", 1), ("Unsqueeze", 0), ("Reshape", 0))
        for op_type, index in steps:
            node = self._graphs.made_by(value, op_type)
            value = node.inputs[index] if node is not None else None
        total = self._graphs.made_by(value, "Add")
        product = self._graphs.made_by(total.inputs[0], "Mul") if total is not None else None
        if total is None or product is None:
            return None
        found = [self._graphs.made_by(v, "Unsqueeze") for v in (product.inputs[1], total.inputs[1])]
        factor, offset = (self._graphs.source(node.inputs[0]) if node is not None else None for node in found)
        return (factor, offset) if factor is not None and offset is not None else None


def _insert(graphs: LinkedGraphs, each: Saved, gradient: Gradient) -> list[tuple[ir.Value, ir.Value]]:
    """Insert the node; return the values that it replaces, with its own."""
    sums, mask, norm = gradient.sums, gradient.mask, gradient.sums.norm
    place = gradient.place(graphs)
    assert place.graph is not None
    given = gradient.input.scale if gradient.input is not None else None
    scale = local(graphs, place.graph, given, norm.scale)
    if scale is None or (mask is not None and mask.mask is None and mask.bits is None):
        return []
    dy, kept, bits = (mask.dy, mask.mask, mask.bits) if mask is not None else (sums.du, None, None)
    inputs = [dy, *(each.parts[name] for name in PARTS), scale, norm.mean, sums.reciprocal, kept, bits]
    made = graphs.insert(place, "SparseNormBackward", inputs, gradient.types(graphs), size=block_of(each.x))
    return gradient.paired(made)
