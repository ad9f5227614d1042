"""The values to keep, as a minimum cut of the joint graph.

Every value is an edge whose capacity is the value's bytes.  The source feeds the values that must be computed in the
forward, the sink receives the values that gradients read.  This is the construction of PyTorch's min-cut partitioner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir

from ttac.passes.graph.shapes import dims
from ttac.passes.plan.decisions import SMALL_BYTES, nbytes
from ttac.passes.plan.needs_gradient import ancestors, computed_inputs

# Operators cheap enough to run twice: about the price of reading and writing their tensor once.
CHEAP = frozenset(
    "Abs Add BatchNormalization Cast ChannelAffine Clip Div Elu Equal Exp Greater GreaterOrEqual HardSigmoid HardSwish "
    "LeakyRelu Less LessOrEqual Masked Max Min Mul Neg Not PRelu Positive Reciprocal Relu Reshape Sigmoid Sqrt Squeeze "
    "Sub Tanh Unsqueeze Flatten Identity Softplus Where And Or Between".split()
)
# Dearer operators: they run twice only where memory is tight.
AFFORDABLE = frozenset("Softmax Transpose".split())
# Operators that are never cheap, even with a small output.
COSTLY = frozenset("Conv ConvTranspose Einsum GRU Gemm LSTM MatMul RNN Scan".split())
MOST_TERMS = 128
"""Longest sum of products whose product may run twice where memory is tight: the features of one attention head."""


@dataclass(frozen=True, kw_only=True)
class CutProblem:
    """A joint graph to cut.

    Attributes:
        joint: forward, loss and gradients.
        gradient_nodes: the nodes that need a gradient.
        free: ids of the values that both sides read at no cost: inputs, state, constants.
        moved: ids of the state inputs that the forward replaces; the backward cannot read their old values.
        batch: samples that the bytes are counted for.
        tight: whether affordable nodes and products of few terms may run twice.
    """

    joint: ir.Graph
    gradient_nodes: Set[ir.Node]
    free: Set[int]
    moved: Set[int]
    batch: int
    tight: bool


def minimum_cut(problem: CutProblem, pinned: Set[int] = frozenset()) -> list[ir.Value]:
    """Return the values to keep.

    The backward never recomputes a value with an id in `pinned`; a mask among these values counts one bit per element.
    """
    flow = nx.DiGraph()
    values: dict[str, ir.Value] = {}
    needed = ancestors(problem.gradient_nodes, problem.free)
    nodes = [node for node in problem.joint if node in needed and node not in problem.gradient_nodes]
    again = recomputable(nodes, problem.batch, problem.moved, tight=problem.tight)
    for node in nodes:
        for value in node.outputs:
            values[str(value.name)] = value
            _add_value(flow, problem, value, is_pinned=id(value) in pinned, is_recomputable=node in again)
    if "source" not in flow or "sink" not in flow:
        return []
    _, (reached, _) = nx.minimum_cut(flow, "source", "sink", flow_func=nx.algorithms.flow.boykov_kolmogorov)
    return [value for name, value in values.items() if (name, "in") in reached and (name, "out") not in reached]


def _add_value(
    flow: nx.DiGraph, problem: CutProblem, value: ir.Value, *, is_pinned: bool, is_recomputable: bool
) -> None:
    """Add the edges of one value to `flow`, in place."""
    name, node = str(value.name), value.producer()
    assert node is not None
    size, is_packed = nbytes(value, problem.batch), is_pinned and value.dtype == ir.DataType.BOOL
    flow.add_edge((name, "in"), (name, "out"), capacity=-(-size // 8) if is_packed else size)
    if not is_recomputable or is_pinned:
        flow.add_edge("source", (name, "in"))
    for source in computed_inputs(node, problem.free):
        flow.add_edge((str(source.name), "out"), (name, "in"))
    if any(use.node in problem.gradient_nodes for use in value.uses()):
        flow.add_edge((name, "out"), "sink")


def recomputable(
    nodes: Iterable[ir.Node], batch: int, moved: Set[int] = frozenset(), *, tight: bool = False
) -> set[ir.Node]:
    """Return the members of `nodes`, in graph order, that are cheap and need at most one large tensor.

    Recomputing a join of two branches would keep both branches alive at once; `s*(1 - s)` needs one tensor only.  Where
    memory is `tight`, a product of few terms counts as one tensor: its gradients need both factors in any case.  A node
    that reads an input with an id in `moved` is not a member: after the forward that input has another value.
    """
    members: set[ir.Node] = set()
    roots: dict[ir.Value, frozenset[ir.Value]] = {}
    for node in nodes:
        if any(id(value) in moved for value in node.inputs):
            continue
        computed = [v for v in node.inputs if v is not None and v.producer() is not None]
        large = [v for v in computed if nbytes(v, batch) > SMALL_BYTES]
        if tight and _has_few_terms(node, large):
            members.add(node)
            continue
        needed = frozenset[ir.Value]().union(*(roots.get(value, frozenset({value})) for value in large))
        is_small = all(nbytes(value, batch) <= SMALL_BYTES for value in node.outputs)
        is_cheap = node.op_type in CHEAP or (is_small and node.op_type not in COSTLY)
        is_cheap = is_cheap or (tight and node.op_type in AFFORDABLE)
        if is_cheap and len(needed) <= 1 and not (is_small and large):
            members.add(node)
            roots.update(dict.fromkeys(node.outputs, needed))
    return members


def _has_few_terms(node: ir.Node, large: Sequence[ir.Value]) -> bool:
    """Whether `node` is a product of two computed tensors at a price per element near that of int8.

    The product of all tokens with each other is such a node.  A layer, which has weights as a factor, costs too much.
    """
    terms = dims(node.inputs[0])[-1] if node.op_type == "MatMul" else None
    return isinstance(terms, int) and terms <= MOST_TERMS and len(set(large)) == 2
