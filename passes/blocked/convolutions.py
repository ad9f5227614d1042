"""Convolutions and pools in the blocked layout."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.blocked.kernels import input_gradient_by_kernel, interleave_by_kernel
from ttac.passes.blocked.layout import Layouts, Phases, Recipe, attributes_of
from ttac.passes.graph.match import only_reader
from ttac.passes.graph.shapes import dims
from ttac.runtime.graph_check import KERNEL_DOMAIN

WINDOW = ("kernel_shape", "strides", "pads", "dilations", "auto_pad")


def block_conv(at: Layouts, node: ir.Node) -> bool:
    """Conv with a constant kernel: an internal Conv.  An input with fewer channels than a block stays plain.

    With the library also a kernel that trains.
    """
    x, w, *rest = node.inputs
    if x is None or w is None or not at.takes(w) or not at.fits(node.outputs[0]):
        return False
    group = node.attributes.get_int("group", 1)
    order = weight_order(at, [int(size) for size in dims(w)], group)
    if not order:
        return False
    narrow = order == "OIHWBo" and group == 1
    if not narrow and not at.can(x):
        return False
    source = at.plain(x) if narrow else at.blocked(x)
    kernel = at.weight(_recipe(w, order), [int(size) for size in dims(w)])
    bias = [at.vector(value) for value in rest if value is not None]
    shape, group = at.shape(dims(node.outputs[0])), at.filled(group) if group > 1 and order == "OIHWBo" else group
    made = at.op.internal("Conv", [source, kernel, *bias], shape, group=group, **attributes_of(node, *WINDOW))
    at.replace(node.outputs[0], made)
    return True


def _recipe(w: ir.Value, order: str) -> Recipe:
    """The recipe of a kernel that a node of the library may have flipped."""
    node = w.producer()
    if node is None or (node.domain, node.op_type) != (KERNEL_DOMAIN, "ReorderWeights") or node.inputs[0] is None:
        return Recipe(w, order)
    rows, columns = (tuple(node.attributes.get_ints(name, ())) for name in ("rows", "columns"))
    return Recipe(node.inputs[0], order, (rows, columns), node.attributes.get_int("groups", 0))


def weight_order(at: Layouts, shape: Sequence[int], group: int) -> str:
    """How the engine's kernels want a kernel [O, I/group, h, w] to be blocked; empty where they cannot take it."""
    outputs, inputs, block = shape[0], shape[1], at.block
    if not at.fills(outputs):
        return ""
    if group == 1:
        return "OIHWBiBo" if at.fills(inputs) else "OIHWBo" if inputs < block else ""
    if inputs == 1 and outputs == group:
        return "OIHWBo"
    if outputs % block:
        return ""
    return "OIHWBiBo" if inputs % block == 0 and outputs // group % block == 0 else ""


def block_transposed(at: Layouts, node: ir.Node) -> bool:
    """ConvTranspose with a stride: one Conv for each phase of its output, and the phases interleaved."""
    g, w, *rest = node.inputs
    if rest or not at.takes(w) or not at.can(g) or not at.fits(node.outputs[0]) or "auto_pad" in node.attributes:
        return False
    assert g is not None and w is not None
    if at.kernels and depthwise(node, w) and at.is_weight(w):
        at.replace(node.outputs[0], input_gradient_by_kernel(at, node, g, w))
        return True
    phases = phases_of(at, node, g, w)
    if phases is None:
        return False
    _join(at, phases, node.outputs[0])
    return True


def _join(at: Layouts, phases: Phases, value: ir.Value) -> None:
    join = interleave_by_kernel if at.kernels else interleave
    at.replace(value, join(at, phases, value))
    at.phases[value] = phases


def block_sum_of_phases(at: Layouts, node: ir.Node) -> bool:
    """Add of two maps in phases: each phase is added alone, which the convolution of the phase does as it goes."""
    found = [at.phases.get(v) for v in node.inputs if v is not None and only_reader(v, "Add") is node]
    if len(found) != 2 or found[0] is None or found[1] is None:
        return False
    lines = [list(zip(*pair, strict=True)) for pair in zip(*found, strict=True)]
    _join(at, [[_sum(at, first, second) for first, second in line] for line in lines], node.outputs[0])
    return True


def _sum(at: Layouts, first: ir.Value | None, second: ir.Value | None) -> ir.Value | None:
    if first is None or second is None:
        return first or second
    made = at.op.Add(first, second)
    made.shape, made.type = first.shape, first.type
    return made


def depthwise(node: ir.Node, w: ir.Value) -> bool:
    """Whether a ConvTranspose without dilations has one channel in each group."""
    dilated = any(step != 1 for step in node.attributes.get_ints("dilations", (1, 1)))
    return not dilated and dims(w)[:2] == [node.attributes.get_int("group", 1), 1]


def phases_of(at: Layouts, node: ir.Node, g: ir.Value, w: ir.Value) -> Phases | None:
    """The output of a ConvTranspose by phase [row, column], blocked; None for one to which no tap contributes."""
    sizes = [int(size) for size in dims(w)]
    strides = [int(stride) for stride in node.attributes.get_ints("strides", (1, 1))]
    outs = [int(size) for size in dims(node.outputs[0])[2:]]
    group = node.attributes.get_int("group", 1)
    # A kernel [O, C/group, h, w] of the forward becomes [C, O/group, h, w].
    swapped = [sizes[1] * group, sizes[0] // group, *sizes[2:]]
    order = weight_order(at, swapped, group)
    dilated = any(step != 1 for step in node.attributes.get_ints("dilations", (1, 1)))
    if dilated or not order or (order == "OIHWBo" and group == 1):
        return None
    if set(strides) != {2} or any(out % 2 for out in outs):
        return None
    begins = node.attributes.get_ints("pads", (0, 0, 0, 0))[:2]
    ins = [int(size) for size in dims(g)[2:]]
    axes = [
        [_phase(sizes[2 + axis], begins[axis], phase, ins[axis], outs[axis] // 2) for phase in range(2)]
        for axis in range(2)
    ]
    if any(min(pads) < 0 for phases in axes for taps, pads in phases if taps):
        return None
    source = at.blocked(g)
    groups = 0 if order == "OIHWBo" else group
    if order == "OIHWBo":
        group = at.filled(group)
    found: Phases = []
    for rows, row_pads in axes[0]:
        line: list[ir.Value | None] = []
        for columns, column_pads in axes[1]:
            if not rows or not columns:
                line.append(None)
                continue
            shape = [*swapped[:2], len(rows), len(columns)]
            kernel = at.weight(Recipe(w, order, (tuple(rows), tuple(columns)), groups), shape)
            pads = [row_pads[0], column_pads[0], row_pads[1], column_pads[1]]
            size = at.shape([dims(g)[0], swapped[0], outs[0] // 2, outs[1] // 2])
            line.append(at.op.internal("Conv", [source, kernel], size, group=group, kernel_shape=shape[2:], pads=pads))
        found.append(line)
    return found


def _phase(kernel: int, begin: int, phase: int, size: int, out: int) -> tuple[list[int], tuple[int, int]]:
    """Taps that reach outputs 2*j + `phase`, in the order a Conv wants them, and the pads of that Conv.

    Output o gets g[i] * w[k] where 2*i + k - begin = o.
    """
    first = (phase + begin) % 2
    taps = list(range(first, kernel, 2))[::-1]
    left = len(taps) - 1 - (phase + begin - first) // 2
    return taps, (left, out - size - left + len(taps) - 1)


def interleave(at: Layouts, phases: Phases, like: ir.Value) -> ir.Value:
    """The map whose even and odd rows and columns are the `phases`, all blocked."""
    _, channels, height, width = at.shape(dims(like))
    w, block = int(width) // 2, at.block
    rows = [_row(at, line, [-1, w, block], [-1, 2 * w * block]) for line in phases]
    if rows[1] is None:
        assert rows[0] is not None
        both = at.op.Pad(rows[0], [0, 0, 0, 2 * w * block])
    elif rows[0] is None:
        both = at.op.Pad(rows[1], [0, 2 * w * block, 0, 0])
    else:
        both = at.op.Concat(rows[0], rows[1], axis=1)
    made = at.op.Reshape(both, [-1, int(channels), int(height), int(width)])
    made.shape = ir.Shape(at.shape(dims(like)))
    return made


def _row(at: Layouts, line: Sequence[ir.Value | None], cells: list[int], flat: list[int]) -> ir.Value | None:
    left, right = line
    if left is None and right is None:
        return None
    width = cells[2]
    if left is not None and right is not None:
        joined = at.op.Concat(at.op.Reshape(left, cells), at.op.Reshape(right, cells), axis=2)
    elif left is not None:
        joined = at.op.Pad(at.op.Reshape(left, cells), [0, 0, 0, 0, 0, width])
    else:
        joined = at.op.Pad(at.op.Reshape(right, cells), [0, 0, width, 0, 0, 0])
    return at.op.Reshape(joined, flat)


def block_pool(at: Layouts, node: ir.Node) -> bool:
    """MaxPool and AveragePool of a map that is blocked."""
    (x,) = node.inputs
    if not at.has(x) or not at.fits(node.outputs[0]) or len(node.outputs) != 1:
        return False
    kept = attributes_of(node, *WINDOW, "ceil_mode", "count_include_pad")
    at.replace(node.outputs[0], at.op.internal(node.op_type, [at.blocked(x)], at.shape(dims(node.outputs[0])), **kept))
    return True
