"""Rewrite the forward and the backward stages of a bundle into the blocked layout."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.passes.blocked.channel_maps import block_mean, block_norm, block_scaled, block_squares
from ttac.passes.blocked.convolutions import block_conv, block_pool, block_sum_of_phases, block_transposed
from ttac.passes.blocked.fuse import fuse
from ttac.passes.blocked.gates import block_gated
from ttac.passes.blocked.kernels import block_kernel, block_weight_gradient
from ttac.passes.blocked.layout import DOMAIN, ROOM, LayoutBuilder, Layouts, Recipe, constant_ints
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.shapes import dims, known_dims
from ttac.passes.kernels.linked_graphs import version_of
from ttac.passes.lower.lower import name_nodes
from ttac.runtime.graph_check import KERNEL_DOMAIN

ELEMENTWISE = frozenset(
    "Relu Add Mul Sub Div Neg HardSigmoid Sigmoid Cast Greater Less And Not Or Clip Min Max Sign Abs Sqrt Exp Tanh "
    "LeakyRelu HardSwish Identity Erf Reciprocal Pow Softplus Elu GreaterOrEqual LessOrEqual".split()
)
"""Operators whose outputs depend on the elements at the same place only."""
NOT_OF_ZERO = frozenset({"Div", "Reciprocal", "Pow"})
"""Operators among them with infinite or undefined results for the zeros of padding."""


@dataclass(frozen=True)
class BlockedGraphs:
    """The graphs of one block size, and the recipe of each weight that they take as an input.

    Attributes:
        kernels: version of the operators of `ttac-kernels` in the graphs; 0 for none.
    """

    block: int
    kernels: int
    graphs: Mapping[str, ir.Model]
    recipes: Mapping[str, Recipe]

    def joined(self, more: Mapping[str, ir.Model]) -> BlockedGraphs:
        """The same with further graphs, which have no blocked values."""
        version = max([self.kernels, *(version_of(model.graph) for model in more.values())])
        return replace(self, kernels=version, graphs={**self.graphs, **more})


def block_graphs(
    graphs: Mapping[str, ir.Model],
    block: int,
    fed_weights: Collection[str],
    outside: Collection[str],
    *,
    kernels: bool = False,
) -> BlockedGraphs:
    """Copies of `graphs`, in the order in which they run, in the blocked layout of `block` channels.

    Args:
        fed_weights: names of graph inputs that are constant weights.
        outside: names of outputs that anybody but a later one of `graphs` reads; they stay plain.
        kernels: whether the graphs use the operator library; then they come from `with_kernels`.
    """
    crossing: set[str] = set()
    recipes: dict[str, Recipe] = {}
    made: dict[str, ir.Model] = {}
    for name, model in graphs.items():
        copy = model.clone()
        op = LayoutBuilder(copy.graph, ROOM, copy.opset_imports[""])
        at = Layouts(op=op, block=block, fed_weights=frozenset(fed_weights), kernels=kernels)
        made[name], found = _block(at, copy, crossing, frozenset(outside)), at.recipes
        recipes |= found
    version = version_of(node for model in made.values() for node in model.graph)
    return BlockedGraphs(block, version, made, recipes)


def is_worthwhile(made: BlockedGraphs) -> bool:
    """Whether the graphs have layer norms of the library, or more reordered weights than reorders of activations."""
    every = [node for model in made.graphs.values() for node in model.graph]
    if any(node.op_type.startswith("LayerNorm") and node.domain == KERNEL_DOMAIN for node in every):
        return True
    nodes = [node for node in every if node.domain == DOMAIN]
    convolutions = [n for n in nodes if n.op_type == "Conv" and _has_blocked_kernel(n, made)]
    return len(convolutions) > sum(node.op_type.startswith("Reorder") for node in nodes)


def _has_blocked_kernel(node: ir.Node, made: BlockedGraphs) -> bool:
    kernel = node.inputs[1]
    assert kernel is not None
    maker = kernel.producer()
    return str(kernel.name) in made.recipes or (maker is not None and maker.op_type == "ReorderWeights")


def _block(at: Layouts, model: ir.Model, crossing: set[str], outside: frozenset[str]) -> ir.Model:
    """`model` rewritten in place; `crossing` names the values that come in blocked, and gets those that go out so."""
    graph = model.graph
    for index, value in enumerate(graph.inputs):
        if value.name in crossing:
            at.of[value] = value
            at.only.add(value)
            if at.padded(value):
                port = ir.Value(name=value.name, type=value.type, shape=ir.Shape(at.shape(dims(value))))
                at.of[value] = graph.inputs[index] = port
    for node in list(graph):
        with at.op.at(node.metadata_props.get(LAYER, ""), before=node):
            if not _rewritten(at, node):
                _read_plain(at, node)
    _hand_over(at, graph, crossing, outside)
    _take_inputs(at, graph)
    common.RemoveUnusedNodesPass()(model)
    fuse(at.op)
    name_nodes(model)
    model.opset_imports[DOMAIN] = 1
    if version := version_of(graph):
        model.opset_imports[KERNEL_DOMAIN] = version
    return model


def _rewritten(at: Layouts, node: ir.Node) -> bool:
    rule = RULES.get(node.op_type)
    if node.domain:
        block = block_weight_gradient if node.op_type == "ConvWeightGrad" else block_kernel
        return node.domain == KERNEL_DOMAIN and block(at, node)
    if rule is not None:
        return rule(at, node)
    return node.op_type in ELEMENTWISE and _block_elementwise(at, node)


def _block_elementwise(at: Layouts, node: ir.Node) -> bool:
    """The same operator on blocked operands; scalars stay."""
    out = node.outputs[0]
    if node.op_type in ("Mul", "Add") and block_gated(at, node):
        return True
    if node.op_type == "Add" and block_sum_of_phases(at, node):
        return True
    if at.kernels and node.op_type == "Mul" and block_scaled(at, node):
        return True
    if not at.fits(out) or len(node.outputs) != 1 or (at.padded(out) and node.op_type in NOT_OF_ZERO):
        return False
    large = [value for value in node.inputs if value is not None and not _is_scalar(value)]
    floating = out.dtype == ir.DataType.FLOAT
    if not (any if floating else all)(at.has(value) for value in large):
        return False
    if not all(known_dims(value) == dims(out) and at.can(value) for value in large):
        return False
    operands = [None if v is None else v if _is_scalar(v) else at.blocked(v) for v in node.inputs]
    at.replace(out, at.op.copy(node, operands))
    return True


def _is_scalar(value: ir.Value) -> bool:
    return value.shape is not None and all(size == 1 for size in value.shape)


def _block_size(at: Layouts, node: ir.Node) -> bool:
    """Size and Shape are those of either form; with padding only where nothing depends on the channels."""
    x = node.inputs[0]
    if at.has(x) and (not at.padded(x) or _only_waits(node)):  # type: ignore[arg-type]
        node.replace_input_with(0, at.blocked(x))
        return True
    return False


def _only_waits(node: ir.Node) -> bool:
    if node.op_type == "Size":
        return all(use.node.op_type == "Min" for use in node.outputs[0].uses())
    return (node.attributes.get_int("start", 0), node.attributes.get_int("end", 0)) == (0, 1)


def _block_reshape(at: Layouts, node: ir.Node) -> bool:
    """A Reshape to the shape that the value has, which only makes it wait."""
    x, shape = node.inputs
    if not at.has(x) or not at.fits(node.outputs[0]) or known_dims(x) != dims(node.outputs[0]):
        return False
    if at.padded(node.outputs[0]) and shape is not None and shape.const_value is not None:
        return False
    at.replace(node.outputs[0], at.op.copy(node, [at.blocked(x), shape]))
    return True


def _block_concat(at: Layouts, node: ir.Node) -> bool:
    """Concat of channels, where each operand has whole blocks of them."""
    out = node.outputs[0]
    if node.attributes.get_int("axis") != 1 or not at.fits(out) or not any(at.has(value) for value in node.inputs):
        return False
    if not all(at.can(value) and value is not None and not at.padded(value) for value in node.inputs):
        return False
    at.replace(out, at.op.copy(node, [at.blocked(value) for value in node.inputs]))
    return True


RULES: Mapping[str, Callable[[Layouts, ir.Node], bool]] = {
    "Conv": block_conv,
    "ConvTranspose": block_transposed,
    "MaxPool": block_pool,
    "AveragePool": block_pool,
    "BatchNormalization": block_norm,
    "GlobalAveragePool": block_mean,
    "ReduceSum": block_mean,
    "ReduceMean": block_squares,
    "Size": _block_size,
    "Shape": _block_size,
    "Reshape": _block_reshape,
    "Concat": _block_concat,
}


def _read_plain(at: Layouts, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and value in at.only and not _dies(node):
            node.replace_input_with(index, at.plain(value))


def _dies(node: ir.Node) -> bool:
    """Whether the node's only reader is about to be replaced: the first half of a mean of squares."""
    if node.op_type != "ReduceSumSquare":
        return False
    readers = [use.node for use in node.outputs[0].uses()]
    return all(reader.op_type == "ReduceMean" and _is_square(node, reader) for reader in readers)


def _is_square(node: ir.Node, reader: ir.Node) -> bool:
    axes, rest = constant_ints(node.inputs[1]), constant_ints(reader.inputs[1])
    return (axes, rest) in (([3], [0, 2]), ([2, 3], [0]))


def _hand_over(at: Layouts, graph: ir.Graph, crossing: set[str], outside: frozenset[str]) -> None:
    """Make the graph's outputs those of the rewritten nodes, under their names."""
    for index, value in enumerate(graph.outputs):
        if value not in at.only:
            continue
        name = str(value.name)
        if name in outside:
            new = at.plain(value)
        else:
            new = at.of[value]
            crossing.add(name)
        value.name = f"{name}.replaced"
        graph.outputs[index] = new
        new.name = name


def _take_inputs(at: Layouts, graph: ir.Graph) -> None:
    graph.inputs.extend(at.inputs.values())
    for value in list(graph.inputs):
        if not value.uses() and str(value.name) in at.fed_weights:
            graph.inputs.remove(value)
