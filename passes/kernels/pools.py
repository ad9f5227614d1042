"""MaxPool with the taps that won, and its gradient: one node each."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ttac.passes.graph.shapes import dims
from ttac.passes.graph.windows import Window, spatial, window_of
from ttac.passes.kernels.expected import expected
from ttac.passes.kernels.linked_graphs import LinkedGraphs
from ttac.passes.kernels.terms import Terms


def fuse_pools(graphs: LinkedGraphs) -> None:
    """Replace every MaxPool whose taps a gradient reads, and the gradient."""
    for node in list(graphs.nodes("MaxPool")):
        x, window = node.inputs[0], _window(node)
        if window is not None and x is not None and x.dtype == ir.DataType.FLOAT:
            _fuse(graphs, node, x, window)


def _window(node: ir.Node) -> Window | None:
    """The window of a pool over maps [N, C, H, W]; None for other shapes and for windows that reach beyond the pads."""
    x, y = node.inputs[0], node.outputs[0]
    if len(dims(x)) != 4 or len(node.outputs) != 1 or not all(isinstance(s, int) for s in [*dims(x)[1:], *dims(y)[1:]]):
        return None
    window = window_of(node, node.attributes.get_ints("kernel_shape"), spatial(x), spatial(y))
    pads = list(node.attributes.get_ints("pads") or [0] * 4)
    fits = all(over <= pad for over, pad in zip(window.overhang, pads[2:], strict=True))
    return window if fits and set(window.dilations) == {1} else None


def _fuse(graphs: LinkedGraphs, node: ir.Node, x: ir.Value, window: Window) -> None:
    y = node.outputs[0]
    taps = _taps(graphs, x, y, window)
    if taps is None:
        return
    attributes = _attributes(node, window)
    types = [(ir.DataType.FLOAT, dims(y)), (ir.DataType.UINT8, dims(y))]
    made = graphs.insert(node, "MaxPoolForward", [x], types, **attributes)
    graphs.replace(y, made[0])
    graphs.replace(taps, made[1])
    for scatter in list(graphs.nodes("ScatterElements")):
        if (found := _scattered(graphs, scatter, made[1], window)) is not None:
            dy, dx = found
            (new,) = graphs.insert(
                scatter,
                "MaxPoolBackward",
                [dy, made[1]],
                [(ir.DataType.FLOAT, [dims(dy)[0], *dims(x)[1:]])],
                sizes=list(window.sizes),
                **attributes,
            )
            graphs.replace(dx, new)


def _attributes(node: ir.Node, window: Window) -> dict[str, Any]:
    pads = list(node.attributes.get_ints("pads") or [0] * 4)
    return {"kernel_shape": list(window.kernel), "strides": list(window.strides), "pads": pads}


def _taps(graphs: LinkedGraphs, x: ir.Value, y: ir.Value, window: Window) -> ir.Value | None:
    """The value that is the expansion of `MaxPoolTaps(x, y)` in the pool's graph."""
    terms = Terms()
    atoms = {graphs.source(v): terms.term(name) for name, v in (("x", x), ("y", y))}
    wanted = _expected(terms, "MaxPoolTaps", {"x": x, "y": y}, window)
    assert y.graph is not None
    casts = [n for n in y.graph if n.op_type == "Cast" and n.outputs[0].dtype == ir.DataType.UINT8]
    return next((n.outputs[0] for n in casts if terms.of(graphs, n.outputs[0], atoms) == wanted), None)  # type: ignore[arg-type]


def _scattered(
    graphs: LinkedGraphs, scatter: ir.Node, taps: ir.Value, window: Window
) -> tuple[ir.Value, ir.Value] | None:
    """dy and dx, where `scatter` is in the expansion of `MaxPoolScatter(dy, taps)`."""
    flat = graphs.made_by(scatter.inputs[2], "Reshape")
    ends = [reader.outputs[0] for reader in graphs.readers(scatter.outputs[0]) if reader.op_type == "Reshape"]
    dy = graphs.source(flat.inputs[0]) if flat is not None else None
    if dy is None or len(ends) != 1 or dims(dy) != dims(taps):
        return None
    terms = Terms()
    atoms = {dy: terms.term("dy"), taps: terms.term("taps")}
    wanted = _expected(terms, "MaxPoolScatter", {"dy": dy, "taps": taps}, window)
    return (dy, ends[0]) if terms.of(graphs, ends[0], atoms) == wanted else None


def _expected(terms: Terms, operator: str, operands: dict[str, ir.Value], window: Window) -> int:
    return expected(terms, operands, lambda op, *inputs: [op.node(operator, list(inputs), window.attributes())])[0]
