"""Numbers for computations: two values have the same number if equal nodes compute them from the same atoms."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.match import array_of
from ttac.passes.graph.shapes import dims
from ttac.passes.kernels.linked_graphs import LinkedGraphs

COMMUTATIVE = ("Add", "Mul", "And", "Max")
VECTORS = frozenset("Add Sub Mul Div Neg Reciprocal Sqrt".split())
"""Operators in the formulas of norms, on vectors [C] and scalars."""
BITS = frozenset("Flatten Cast Pad Reshape MatMulInteger Gather Slice".split())
"""Operators that pack masks into bits, and unpack them."""
BLOCKS = VECTORS | frozenset(
    "Abs Cast ConstantOfShape DequantizeLinear Floor Gather GatherND Max Mod QuantizeLinear Range ReduceMax ReduceMean "
    "ReduceSum Reshape ScatterND Shape Slice Squeeze Unsqueeze".split()
)
"""Operators of the codec `blocks` and of its readers."""


DEEPEST = 100
"""Most nodes in a row that are compared.  No formula is as deep, and a whole network exceeds the depth of recursion."""


class Terms:
    """The numbers, shared by all graphs that are compared.

    Args:
        through: the operators whose nodes are compared; the output of another operator is an atom.  None for all.
    """

    def __init__(self, through: Collection[str] | None = None) -> None:
        self._through, self._numbers = through, {}  # type: ignore[var-annotated]

    def term(self, *parts: object) -> int:
        """The number of an operator's name and the numbers of its operands, or of an atom's name."""
        if parts[0] in COMMUTATIVE and len(parts) == 3:
            parts = (parts[0], *sorted(parts[1:]))  # type: ignore[type-var]
        return int(self._numbers.setdefault(parts, len(self._numbers)))

    def scalar(self, number: float) -> int:
        """The number of a constant."""
        return self.term("scalar", float(number))

    def of(self, graphs: LinkedGraphs, value: ir.Value | None, atoms: Mapping[ir.Value, int]) -> int:
        """The number of `value`, where `atoms` have the given numbers."""
        return self._of(graphs, value, atoms, {}, DEEPEST)

    def _of(
        self,
        graphs: LinkedGraphs,
        value: ir.Value | None,
        atoms: Mapping[ir.Value, int],
        known: dict[ir.Value, int],
        depth: int,
    ) -> int:
        source = graphs.source(value)
        if source is None or source in atoms:
            return -1 if source is None else atoms[source]
        if source not in known:
            known[source] = self._made(graphs, source, atoms, known, depth)
        return known[source]

    def _made(
        self,
        graphs: LinkedGraphs,
        source: ir.Value,
        atoms: Mapping[ir.Value, int],
        known: dict[ir.Value, int],
        depth: int,
    ) -> int:
        array, node = array_of(source), source.producer()
        if array is not None:
            flat = array.reshape(-1)
            return self.scalar(flat[0]) if len(flat) == 1 else self.term("array", str(array.dtype), array.tobytes())
        if (counted := _counted(graphs, source)) is not None:
            return self.term("batch", counted)
        passes = self._through is None or (node is not None and node.op_type in self._through)
        if node is None or node.domain or not passes or not depth:
            return self.term("value", graphs.key(source))
        operands = [self._of(graphs, operand, atoms, known, depth - 1) for operand in node.inputs]
        attributes = sorted((name, _content(attribute)) for name, attribute in node.attributes.items())
        place = [source.index()] if len(node.outputs) > 1 else []
        return self.term(node.op_type, *operands, *([tuple(attributes)] if attributes else []), *place)


def _counted(graphs: LinkedGraphs, value: ir.Value) -> int | str | None:
    """The symbol of the batch size, where `value` is this size as a scalar."""
    squeezed = graphs.made_by(value, "Squeeze")
    cast = graphs.made_by(squeezed.inputs[0], "Cast") if squeezed is not None else None
    shape = graphs.made_by(cast.inputs[0], "Shape") if cast is not None else None
    if shape is None or shape.attributes.get_int("start", 0) != 0 or shape.attributes.get_int("end", 0) != 1:
        return None
    counted = graphs.source(shape.inputs[0])
    return dims(counted)[0] if counted is not None and counted.shape is not None else None


def _content(attribute: ir.Attr) -> str:
    held = attribute.value
    if attribute.type == ir.AttributeType.FLOAT:
        return str(np.float32(held))
    return str(held.numpy().tolist() if attribute.type == ir.AttributeType.TENSOR else held)
