"""The gradient of a convolution by its kernel, and the kernels that train: one node each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from ttac.passes.graph.shapes import dims
from ttac.passes.graph.windows import Window, spatial, window_of
from ttac.passes.kernels.expected import expected
from ttac.passes.kernels.linked_graphs import LinkedGraphs
from ttac.passes.kernels.terms import Terms
from ttac.passes.operators.conv_gradients import kernel_flipped

SUMS = ("Reshape", "Transpose", "Reshape", "Transpose", "Reshape")
"""The last nodes of a weight gradient, from its output on."""
COLUMNS = ("Reshape", "Transpose", "Reshape")
"""The nodes between the output's gradient and the product."""
READS = ("Reshape", "Transpose", "Slice", "Pad", "Concat")
"""The nodes between the input and the product."""
LEAST = 8
"""Channels of the smallest block: fewer outputs leave the vectors of the node empty."""


def fuse_weight_gradients(graphs: LinkedGraphs) -> None:
    """Replace every weight gradient of a convolution over maps [N, C, H, W] that is not depthwise."""
    layers = [(node, window) for node in graphs.nodes("Conv") if (window := _window(node)) is not None]
    for end in list(graphs.nodes("Reshape")):
        sizes = end.outputs[0].shape
        if sizes is not None and len(sizes) == 4:
            _fuse(graphs, end, [(n, w) for n, w in layers if dims(n.inputs[1]) == dims(end.outputs[0])])


def _window(node: ir.Node) -> Window | None:
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if any(v is None or v.shape is None or len(v.shape) != 4 for v in (x, w, y)):
        return None
    if not all(isinstance(size, int) for v in (x, w, y) for size in [*dims(v)[1:], *(dims(v)[:1] if v is w else [])]):
        return None
    window = window_of(node, [int(size) for size in dims(w)[2:]], spatial(x), spatial(y))
    pads = [*window.begins, *(max(0, over) for over in window.overhang)]
    fits = all(0 <= pad < size for pad, size in zip(pads, [*window.kernel, *window.kernel], strict=True))
    outputs, inputs = int(dims(w)[0]), int(dims(x)[1])
    wide = outputs % LEAST == 0 and (inputs % LEAST == 0 or inputs < LEAST) and int(dims(w)[1]) > 1
    return window if fits and wide and set(window.dilations) == {1} else None


def _fuse(graphs: LinkedGraphs, end: ir.Node, layers: Sequence[tuple[ir.Node, Window]]) -> None:
    product = _product(graphs, end) if layers else None
    dy = _before(graphs, product.inputs[1], COLUMNS) if product is not None else None
    if product is None or dy is None:
        return
    for x in _candidates(graphs, product.inputs[0]):
        for layer, window in layers:
            if dims(x)[1:] != dims(layer.inputs[0])[1:] or dims(dy)[1:] != dims(layer.outputs[0])[1:]:
                continue
            if _is_gradient(graphs, end, x, dy, layer, window):
                _insert(graphs, end, x, dy, layer, window)
                return


def _before(graphs: LinkedGraphs, value: ir.Value | None, op_types: Iterable[str]) -> ir.Value | None:
    for op_type in op_types:
        node = graphs.made_by(value, op_type)
        value = node.inputs[0] if node is not None else None
    return graphs.source(value)


def _product(graphs: LinkedGraphs, end: ir.Node) -> ir.Node | None:
    """The first MatMul behind the last nodes of a weight gradient."""
    value = _before(graphs, end.outputs[0], SUMS)
    joined = graphs.made_by(value, "Concat")
    value = joined.inputs[0] if joined is not None else value
    total = graphs.made_by(value, "ReduceSum")
    return graphs.made_by(total.inputs[0] if total is not None else value, "MatMul")


def _candidates(graphs: LinkedGraphs, value: ir.Value | None) -> list[ir.Value]:
    """The maps [N, C, H, W] among the values on the way to `value`."""
    found = []
    while value is not None:
        source = graphs.source(value)
        if source is not None and source.shape is not None and len(source.shape) == 4:
            found.append(source)
        node = graphs.made_by(value, *READS)
        value = node.inputs[0] if node is not None else None
    return found


def _is_gradient(graphs: LinkedGraphs, end: ir.Node, x: ir.Value, dy: ir.Value, layer: ir.Node, window: Window) -> bool:
    attributes = {**window.attributes(), "group": layer.attributes.get_int("group", 1)}
    terms = Terms()
    atoms = {x: terms.term("x"), dy: terms.term("dy")}
    (wanted,) = expected(
        terms,
        {"x": x, "dy": dy},
        lambda op, x, dy: [op.node("ConvWeightGrad", [x, dy], {**attributes, "kernel": list(window.kernel)})],
    )
    return terms.of(graphs, end.outputs[0], atoms) == wanted


def _insert(graphs: LinkedGraphs, end: ir.Node, x: ir.Value, dy: ir.Value, layer: ir.Node, window: Window) -> None:
    dw = end.outputs[0]
    assert dw.dtype is not None
    (made,) = graphs.insert(
        end,
        "ConvWeightGrad",
        [x, dy],
        [(dw.dtype, dims(dw))],
        x_block=1,
        group=layer.attributes.get_int("group", 1),
        kernel_shape=list(window.kernel),
        strides=list(window.strides),
        pads=[*window.begins, *(max(0, over) for over in window.overhang)],
        shape=[int(size) for size in dims(dw)[:2]],
    )
    graphs.replace(dw, made)


def fuse_kernels(graphs: LinkedGraphs) -> None:
    """Let convolutions read their trained kernel directly, and flip it by one node.

    The graphs make the kernels wait for a gradient.  The nodes of the library lie in front of their convolution, and
    the engine runs a step in the order of its file.
    """
    for node in graphs.nodes("Conv", "ConvTranspose"):
        w, source = node.inputs[1], graphs.source(node.inputs[1])
        if source is None or w is None:
            continue
        if source.is_graph_input():
            node.replace_input_with(1, graphs.read(node.graph, source))  # type: ignore[arg-type]
        elif node.op_type == "Conv":
            _fuse_flip(graphs, node, source)


def _fuse_flip(graphs: LinkedGraphs, node: ir.Node, flipped: ir.Value) -> None:
    w: ir.Value | None = flipped
    while (maker := graphs.made_by(w, "Transpose", "Reshape", "Slice")) is not None:
        w = graphs.source(maker.inputs[0])
    if w is None or not w.is_graph_input() or w.shape is None or len(w.shape) != 4 or w.dtype != ir.DataType.FLOAT:
        return
    terms, group = Terms(), node.attributes.get_int("group", 1)
    sizes = [int(size) for size in dims(w) if isinstance(size, int)]
    if len(sizes) != 4 or sizes[0] % group:
        return
    (wanted,) = expected(terms, {"w": w}, lambda op, w: [kernel_flipped(op, w, group, frozen=False)])
    if terms.of(graphs, flipped, {w: terms.term("w")}) != wanted:
        return
    shape = [group * sizes[1], sizes[0] // group, *sizes[2:]]
    taps = {name: list(range(size))[::-1] for name, size in zip(("rows", "columns"), sizes[2:], strict=True)}
    (made,) = graphs.insert(
        node, "ReorderWeights", [w], [(ir.DataType.FLOAT, shape)], groups=group, inputs_in_blocks=0, **taps
    )
    node.replace_input_with(1, made)
