"""Fed weights: turn the weights of 1x1 convolutions from constants into inputs of their graphs.

An engine that finds a weight in the graph moves the input of each Conv into the engine's own layout and back.  A 1x1
Conv is a matrix product without such moves, and the moves cost as much as the product: 1.1 to 2 times the time on x86.
A fed weight also exists once, in the mapped file, however many graphs read the weight.

Some tensors stay in that layout from one Conv to the next, with norms folded into the Conv.  There, a constant weight
is faster: in bundles without a backward, wherever no statistics are taken of the Conv's output.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.graph_files import INLINE_BYTES

STATISTICS = frozenset({"ReduceMean", "ReduceSumSquare", "Reshape"})
"""Operators that take the statistics of an activation, in the layout of the graph."""


def make_fed_weights(models: Iterable[ir.Model], *, observed: bool = False) -> dict[str, np.ndarray]:
    """Turn constant weights of 1x1 convolutions in all `models` into graph inputs, in place; return them by name.

    With `observed`, the convolutions are those whose outputs are read for statistics.  Graphs cut from one joint graph
    hold a weight under one name.  A name with two contents stays a constant in every graph.
    """
    readers: dict[str, list[tuple[ir.Model, ir.Value]]] = {}
    for model in models:
        for name, value in model.graph.initializers.items():
            if is_pointwise_weight(value) and (not observed or is_observed(value)):
                readers.setdefault(name, []).append((model, value))
    weights: dict[str, np.ndarray] = {}
    # The order of initializers differs from run to run where a graph was extracted from another one.
    for name, places in sorted(readers.items()):
        arrays = [value.const_value.numpy() for _, value in places if value.const_value is not None]
        if all(array is arrays[0] or np.array_equal(array, arrays[0]) for array in arrays):
            weights[name] = arrays[0]
            for model, value in places:
                _to_input(model.graph, value)
    return weights


def is_pointwise_weight(value: ir.Value) -> bool:
    """Whether every reader of the constant is an ungrouped 1x1 convolution that takes it as its kernel."""
    tensor = value.const_value
    if tensor is None or tensor.nbytes <= INLINE_BYTES or len(tensor.shape) < 3:
        return False
    if any(size != 1 for size in tensor.shape[2:]):
        return False
    return bool(value.uses()) and all(
        use.idx == 1 and use.node.op_type in ("Conv", "ConvTranspose") and use.node.attributes.get_int("group", 1) == 1
        for use in value.uses()
    )


def is_observed(weight: ir.Value) -> bool:
    """Whether a reader of the weight has an output whose statistics are taken."""
    outputs = [use.node.outputs[0] for use in weight.uses()]
    return any(use.node.op_type in STATISTICS for output in outputs for use in output.uses())


def _to_input(graph: ir.Graph, value: ir.Value) -> None:
    tensor = value.const_value
    assert tensor is not None
    graph.initializers.pop(str(value.name))
    value.dtype, value.shape, value.const_value = (
        tensor.dtype,
        ir.Shape([int(str(size)) for size in tensor.shape]),
        None,
    )
    graph.inputs.append(value)
