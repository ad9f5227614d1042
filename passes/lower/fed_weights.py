"""Hand the weights of 1x1 convolutions to their graphs as inputs, instead of writing them in.

An engine that finds a weight in the graph moves the tensor into its own layout and back around each Conv.  A 1x1 Conv
is a matrix product as it stands, and those moves cost as much as it does: 1.1 to 2 times the time on x86.  Fed weights
also exist once, in the mapped file, however many graphs read them.

Where tensors stay in that layout from one Conv to the next, and norms are folded into the Conv, a weight at hand is
better: in bundles without a backward that is so wherever nobody takes statistics of the Conv's output.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.graph_files import INLINE_BYTES

STATISTICS = frozenset({"ReduceMean", "ReduceSumSquare", "Reshape"})
"""What reads an activation to take its statistics, in the engine's plain layout."""


def feed_pointwise(models: Iterable[ir.Model], *, observed: bool = False) -> dict[str, np.ndarray]:
    """Turn constant weights of 1x1 convolutions in all `models` into graph inputs, in place; returns them by name.

    With `observed`, only of those whose outputs are read for their statistics.
    Graphs cut from one joint graph hold a weight under one name; a name that means two contents is left where it is.
    """
    readers: dict[str, list[tuple[ir.Model, ir.Value]]] = {}
    for model in models:
        for name, value in model.graph.initializers.items():
            if is_pointwise_weight(value) and (not observed or is_observed(value)):
                readers.setdefault(name, []).append((model, value))
    fed: dict[str, np.ndarray] = {}
    # The order of initializers differs from run to run where a graph was extracted from another one.
    for name, places in sorted(readers.items()):
        arrays = [value.const_value.numpy() for _, value in places if value.const_value is not None]
        if all(array is arrays[0] or np.array_equal(array, arrays[0]) for array in arrays):
            fed[name] = arrays[0]
            for model, value in places:
                _to_input(model.graph, value)
    return fed


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
    """Whether statistics are taken of what the readers of the weight give."""
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
