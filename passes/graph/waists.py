"""The waists of a graph: the places where one tensor is all that goes on from the input."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from ttac.passes.graph.rewire import nodes_before

ROUNDED = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
"""Types of rounded values, which carry data as floats do; other integers are sizes and positions."""


def waists(graph: ir.Graph, inputs: Collection[ir.Value]) -> Iterator[tuple[int, ir.Value]]:
    """Each position in the graph behind which a single tensor of data from the `inputs` is read, with that tensor.

    Readers that lead to no output of the graph do not count.
    """
    leading = {node for output in graph.outputs for node in nodes_before(output)}
    order = {node: index for index, node in enumerate(graph) if node in leading}
    ends = dict[ir.Value, int]()
    data = set(inputs)
    for node, index in order.items():
        if any(value is not None and value in data for value in node.inputs):
            made = [v for v in node.outputs if v.dtype is not None and _carries(v.dtype)]
            data.update(made)
            for value in made:
                ends[value] = max((order[use.node] for use in value.uses() if use.node in order), default=index)
        alive = [value for value, end in ends.items() if end > index]
        ends = {value: ends[value] for value in alive}
        if len(alive) == 1:
            yield index, alive[0]


def _carries(dtype: ir.DataType) -> bool:
    return dtype.is_floating_point() or dtype in ROUNDED
