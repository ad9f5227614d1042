"""Decide which operators run in 8 bits, and the grid to which each value is rounded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ttac.passes.quantize.fold import constants
from ttac.passes.quantize.ranges import Range
from ttac.spec import Target

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators with a constant kernel as second operand."""

COMPUTING = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"})
"""Operators without a kernel that compute new values, whose output has a separate grid."""

MOVING = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
"""Operators whose outputs are some of their inputs, on the same grid."""

TAILS = frozenset({"Relu", "Clip"})
"""Activations that the rounding to a grid of non-negative numbers replaces."""


@dataclass(frozen=True)
class Grid:
    """The real numbers (q - zero) * scale for all 8-bit q; `dtype` is numpy's name of the type."""

    scale: float
    zero: int
    dtype: str

    @property
    def starts_at_zero(self) -> bool:
        """Whether rounding to the grid does the same as a ReLU."""
        return self.zero == int(np.iinfo(self.dtype).min)

    @property
    def operands(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point as constants of a graph."""
        return np.array(self.scale, np.float32), np.array(self.zero, self.dtype)


@dataclass
class GridAssignment:
    """Nodes that will run in 8 bits, and the values that are rounded, each with its grid."""

    nodes: set[ir.Node] = field(default_factory=set)
    grids: dict[ir.Value, Grid] = field(default_factory=dict)


def finest_grid(ends: Range, dtype: str) -> Grid:
    """Return the finest grid of 256 numbers that reaches from the lower to the higher end and includes 0."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    smallest = int(np.iinfo(dtype).min)
    scale = float(np.float32((high - low) / 255))
    if not scale > np.finfo(np.float32).tiny:
        return Grid(1.0, smallest if low == 0 else smallest + 255, dtype)
    return Grid(scale, int(np.clip(round(smallest - low / scale), smallest, smallest + 255)), dtype)


def assign_grids(
    model: ir.Model, ranges: Mapping[str, Range], target: Target, norms: Collection[ir.Node] = ()
) -> GridAssignment:
    """Decide which nodes run in 8 bits; `model` stays unchanged.

    Args:
        norms: batch normalisations whose output may be rounded again, for an operator without a kernel behind them.

    Raises KeyError for a value without a range.
    """
    assignment = GridAssignment()
    for node in model.graph:
        if node.op_type in target.int8_operators and _fits(node, assignment, ranges, norms):
            assignment.nodes.add(node)
    for node in reversed(list(model.graph)):
        if node.op_type in MOVING & set(target.int8_operators) and _leads_on(node, assignment):
            assignment.nodes.add(node)
    for node in model.graph:
        if node in assignment.nodes:
            _place(node, assignment, ranges, target.int8_activations)
    return assignment


def _fits(node: ir.Node, assignment: GridAssignment, ranges: Mapping[str, Range], norms: Collection[ir.Node]) -> bool:
    """Return whether a node can run in 8 bits; a node without a kernel only where its range is known."""
    if node.op_type in WEIGHTED:
        return _is_activation(node.inputs[0]) and _kernel(node) is not None
    if node.op_type not in COMPUTING or not all(_is_activation(value) for value in node.inputs):
        return False
    return str(end_of(node).name) in ranges and all(_from_8_bits(value, assignment, norms) for value in node.inputs)


def _kernel(node: ir.Node) -> np.ndarray | None:
    """Return the constant kernel of a weighted node: [C, ...] of a Conv, a matrix of the others."""
    parameters = constants(node)
    if parameters is None or parameters[0].dtype != np.float32:
        return None
    return None if node.op_type == "MatMul" and parameters[0].ndim != 2 else parameters[0]


def _is_activation(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is None and value.dtype == ir.DataType.FLOAT


def _from_8_bits(value: ir.Value | None, assignment: GridAssignment, norms: Collection[ir.Node] = ()) -> bool:
    """Return whether a value comes out of an 8-bit node, through tails, moves and `norms`."""
    while value is not None and (node := value.producer()) is not None:
        if node in assignment.nodes:
            return True
        if node.op_type not in TAILS | MOVING and node not in norms:
            return False
        value = node.inputs[0]
    return False


def _leads_on(node: ir.Node, assignment: GridAssignment) -> bool:
    """Return whether some reader of a moving node takes 8 bits; MaxPool also needs an 8-bit producer."""
    if node.op_type == "MaxPool" and not _from_8_bits(node.inputs[0], assignment):
        return False
    readers = [use.node for use in node.outputs[0].uses()]
    return len(node.outputs) == 1 and _is_activation(node.inputs[0]) and any(n in assignment.nodes for n in readers)


def _place(node: ir.Node, assignment: GridAssignment, ranges: Mapping[str, Range], dtype: str) -> None:
    """Give the inputs and the output of an 8-bit node their grids."""
    data = node.inputs[:1] if node.op_type in WEIGHTED | MOVING else node.inputs
    for value in data:
        assert value is not None
        if value not in assignment.grids:
            assignment.grids[value] = finest_grid(ranges[str(value.name)], dtype)
    if node.op_type in MOVING:
        first = data[0]
        assert first is not None
        assignment.grids[node.outputs[0]] = assignment.grids[first]
    elif node.op_type in {"Conv"} | COMPUTING:
        output = end_of(node)
        assignment.grids[output] = finest_grid(ranges[str(output.name)], dtype)


def end_of(node: ir.Node) -> ir.Value:
    """Return the output of a node, or of the activation behind it that the rounding replaces."""
    y = node.outputs[0]
    readers = list(y.uses())
    if len(readers) == 1 and not y.is_graph_output() and readers[0].node.op_type in TAILS and readers[0].idx == 0:
        return readers[0].node.outputs[0]
    return y
