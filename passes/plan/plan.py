"""Decide what the forward pass keeps for the backward pass: a minimum cut, then a way to keep each value.

Every value that both halves could share is an edge of capacity bytes; what must be computed in the forward hangs on the
source, what the gradients read hangs on the sink (the construction of PyTorch's min-cut partitioner).  Cheap nodes with
one large input may be computed again in the backward instead of kept; where memory is tight also products of few terms,
such as the scores of attention.

A value kept with an error takes nothing with it that a step of a function decides: masks that would be computed from it
again are kept as bits.  Nor a statistic: what is small and read by the gradients is kept beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.keys import SAMPLE_BYTES
from ttac.passes.graph.shapes import dims, sample_size
from ttac.passes.plan.codecs import CODECS

SMALL = 64 * 1024
STATISTIC = 4 * 1024
"""Bytes up to which a value is kept rather than computed again from one that is kept with an error."""
WORTH_ENCODING = 16 * 1024
"""Bytes below which a residual is not worth the nodes that encode it."""
# Operators cheap enough to run twice: about the price of reading and writing their tensor once.
CHEAP = frozenset(
    "Abs Add BatchNormalization Cast ChannelAffine Clip Div Elu Equal Exp Greater GreaterOrEqual HardSigmoid HardSwish "
    "LeakyRelu Less LessOrEqual Masked Max Min Mul Neg Not PRelu Positive Reciprocal Relu Reshape Sigmoid Sqrt Squeeze "
    "Sub Tanh Unsqueeze Flatten Identity Softplus Where And Or Between".split()
)
# Dearer: they run twice only where memory is tight.
AFFORDABLE = frozenset("Softmax Transpose".split())
TERMS = 128
"""Longest sum of products whose products may run twice where memory is tight: features of a head of attention."""
# Operators that are not cheap, even where their output is small.
COSTLY = frozenset("Conv ConvTranspose Einsum GRU Gemm LSTM MatMul RNN".split())


@dataclass(frozen=True)
class Kept:
    """One decision: a value of the forward, how it reaches the backward, its bytes at the planned batch, and why.

    Attributes:
        how: name of a codec, or "recompute".
        share: of its elements that the bytes count as kept, where the codec drops some.
        layers: positions of the layers whose share is asked for at run time; the largest counts.
    """

    value: str
    how: str
    bytes: int
    dense: int
    because: str
    share: float = 1.0
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Shares:
    """The share of its input that each layer keeps, [layers]: state `name` if it `moves`, else always `initial`."""

    name: str
    initial: np.ndarray
    moves: bool


@dataclass(frozen=True)
class Plan:
    """What the forward keeps.  `bytes` is the sum over all residuals, batch included, at `batch` samples."""

    batch: int
    kept: tuple[Kept, ...] = ()
    shares: Shares | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all residuals."""
        return sum(row.bytes for row in self.kept)

    @property
    def dense(self) -> int:
        """Bytes had every value the gradients read been kept as it is."""
        return sum(row.dense for row in self.kept)

    @property
    def residuals(self) -> tuple[str, ...]:
        """Names of the values the forward hands to the backward."""
        return tuple(row.value for row in self.kept if row.how != "recompute")

    @property
    def is_exact(self) -> bool:
        """Whether everything reaches the backward as it was."""
        return all(row.how == "recompute" or CODECS[row.how].is_exact for row in self.kept)

    def exactly(self) -> Plan:
        """The same values, each kept as it is."""
        rows = [row if row.how == "recompute" else replace(row, how="dense", bytes=row.dense) for row in self.kept]
        return replace(self, kept=tuple(rows), shares=None)

    def largest(self, count: int = 5) -> list[Kept]:
        """The rows that cost most, largest first."""
        return sorted(self.kept, key=lambda row: (-row.bytes, row.value))[:count]


Decide = Callable[[ir.Value, Set[ir.Node]], Kept]
"""How to keep a value of the cut, given the nodes of the backward half."""


def plan_activations(
    joint: ir.Graph,
    backward: Sequence[ir.Node],
    free: Iterable[ir.Value],
    batch: int,
    decide: Decide | None = None,
    shares: Shares | None = None,
    *,
    tight: bool = False,
) -> Plan:
    """The residuals of `joint`, whose nodes `backward` were made by autodiff.

    Args:
        free: values that both halves can read at no cost (user inputs, state, constants).
        batch: samples per step that the bytes are counted for.
        decide: how to keep a value; without it all are kept as they are.
        shares: what residuals that drop elements go by.
        tight: run products of few terms, and what follows from them, twice: a few per cent of time for less memory.
    """
    late = downstream_of_gradient(backward)
    wanted = _read_by(late, backward)
    given = {id(value) for value in free}
    decide = decide or (lambda value, _: keep_as(value, "dense", batch))
    cut = _minimum_cut(joint, late, given, batch, tight=tight)
    half = backward_half(late, cut, given)
    rows = [decide(value, half) for value in cut]
    lossy = {id(v) for v, row in zip(cut, rows, strict=True) if not CODECS[row.how].is_exact}
    if lossy:
        small = [v for v in wanted if v.dtype == ir.DataType.BOOL or nbytes(v, batch) <= STATISTIC]
        pinned = frozenset(id(v) for v in small if _follows(v, lossy, half))
        cut = _minimum_cut(joint, late, given, batch, pinned, tight=tight)
        half = backward_half(late, cut, given)
        masks = {id(v) for v in cut if id(v) in pinned and v.dtype == ir.DataType.BOOL}
        rows = [keep_as(v, "bits", batch) if id(v) in masks else decide(v, half) for v in cut]
    chosen = {row.value for row in rows}
    again = [value for value in wanted if value.name not in chosen and id(value) not in given]
    rows += [_recomputed(v, batch) for v in again if nbytes(v, batch) > SMALL]
    return Plan(batch, tuple(rows), shares)


def backward_half(late: Set[ir.Node], cut: Iterable[ir.Value], free: Set[int]) -> set[ir.Node]:
    """`late` and the nodes that the backward computes again, with `cut` kept."""
    return set(late) | _ancestors(late, {*free, *(id(value) for value in cut)})


def _follows(value: ir.Value, sources: Set[int], half: Set[ir.Node]) -> bool:
    """Whether the backward computes `value` from one of `sources`."""
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        if id(current) in sources:
            return True
        maker = current.producer()
        if maker is not None and maker in half and maker not in seen:
            seen.add(maker)
            pending += [v for v in maker.inputs if v is not None]
    return False


def downstream_of_gradient(backward: Sequence[ir.Node]) -> set[ir.Node]:
    """The nodes of `backward` that can only run once the loss is known: everything below the seed `<loss>.grad`."""
    late: set[ir.Node] = set()
    for node in backward:
        if any(v is not None and (v.producer() in late or _is_seed(v)) for v in node.inputs):
            late.add(node)
    return late


def _is_seed(value: ir.Value) -> bool:
    return value.metadata_props.get("ttac.seed") == "true"


def _read_by(late: set[ir.Node], backward: Sequence[ir.Node]) -> list[ir.Value]:
    """Values made before the gradient that a late node reads, in order of first use."""
    seen: dict[ir.Value, None] = {}
    for node in backward:
        if node in late:
            for value in node.inputs:
                if value is not None and value.producer() not in late and value.producer() is not None:
                    seen.setdefault(value)
    return list(seen)


def _minimum_cut(
    joint: ir.Graph,
    late: set[ir.Node],
    free: set[int],
    batch: int,
    pinned: frozenset[int] = frozenset(),
    *,
    tight: bool,
) -> list[ir.Value]:
    """The values to keep; those `pinned` are not computed again, and masks among them count as bits."""
    flow = nx.DiGraph()
    values: dict[str, ir.Value] = {}
    needed = _ancestors(late, free)
    nodes = [node for node in joint if node in needed and node not in late]
    again = recomputable(nodes, batch, tight=tight)
    for node in nodes:
        for value in node.outputs:
            name = str(value.name)
            values[name] = value
            size, packs = nbytes(value, batch), id(value) in pinned and value.dtype == ir.DataType.BOOL
            flow.add_edge((name, "in"), (name, "out"), capacity=-(-size // 8) if packs else size)
            if node not in again or id(value) in pinned:
                flow.add_edge("source", (name, "in"))
            for source in _sources(node, free):
                flow.add_edge((str(source.name), "out"), (name, "in"))
            if any(use.node in late for use in value.uses()):
                flow.add_edge((name, "out"), "sink")
    if "source" not in flow or "sink" not in flow:
        return []
    _, (reached, _) = nx.minimum_cut(flow, "source", "sink", flow_func=nx.algorithms.flow.boykov_kolmogorov)
    return [value for name, value in values.items() if (name, "in") in reached and (name, "out") not in reached]


def _ancestors(late: Set[ir.Node], free: Set[int]) -> set[ir.Node]:
    """The nodes outside `late` that some late node depends on."""
    found: set[ir.Node] = set()
    pending = list(late)
    while pending:
        for source in _sources(pending.pop(), free):
            producer = source.producer()
            if producer is not None and producer not in late and producer not in found:
                found.add(producer)
                pending.append(producer)
    return found


def _sources(node: ir.Node, free: Set[int]) -> list[ir.Value]:
    return [v for v in node.inputs if v is not None and v.producer() is not None and id(v) not in free]


def recomputable(nodes: Iterable[ir.Node], batch: int, *, tight: bool = False) -> set[ir.Node]:
    """Those of `nodes`, in order, that are cheap and need one large tensor at most, however many values follow from it.

    Recomputing a join of two branches would keep both alive at once; `s*(1 - s)` is none.  Where memory is `tight`, a
    product of few terms counts as one tensor: its gradients need both factors in any case.
    """
    found: set[ir.Node] = set()
    roots: dict[ir.Value, frozenset[ir.Value]] = {}
    for node in nodes:
        large = [v for v in node.inputs if v is not None and v.producer() is not None and nbytes(v, batch) > SMALL]
        if tight and _has_few_terms(node, large):
            found.add(node)
            continue
        needed = frozenset[ir.Value]().union(*(roots.get(value, frozenset({value})) for value in large))
        small = all(nbytes(value, batch) <= SMALL for value in node.outputs)
        cheap = node.op_type in CHEAP or (small and node.op_type not in COSTLY)
        cheap = cheap or (tight and node.op_type in AFFORDABLE)
        if cheap and len(needed) <= 1 and not (small and large):
            found.add(node)
            roots.update(dict.fromkeys(node.outputs, needed))
    return found


def _has_few_terms(node: ir.Node, large: Sequence[ir.Value]) -> bool:
    """Whether `node` is a product of two computed tensors at a price per element near that of keeping it in 8 bits.

    That of all tokens with each other is one; a layer, which has weights as a factor, costs too much.
    """
    terms = dims(node.inputs[0])[-1] if node.op_type == "MatMul" else None
    return isinstance(terms, int) and terms <= TERMS and len(set(large)) == 2


def nbytes(value: ir.Value, batch: int) -> int:
    """Bytes of `value` with `batch` samples; a dimension that is not "N" must be known.

    Raises UnsupportedError if it is not.
    """
    if value.dtype is None:
        raise UnsupportedError(f"the type of `{value.name}` is unknown")
    if SAMPLE_BYTES in value.meta:
        return int(batch * value.meta[SAMPLE_BYTES])
    samples = batch if any(isinstance(size, str) for size in dims(value)) else 1
    assert value.shape is not None
    return max(1, samples * sample_size(value.shape) * value.dtype.bitwidth // 8)


def keep_as(value: ir.Value, how: str, batch: int, because: str = "", share: float = 1.0) -> Kept:
    """The row of `value` kept by the codec `how`."""
    dense = nbytes(value, batch)
    if how == "bits":
        return Kept(str(value.name), how, -(-dense // 8), dense, because or "the gradient needs one bit of it")
    if how != "dense":
        return Kept(str(value.name), how, int(batch * CODECS[how].bytes(value, share)), dense, because, share)
    if not because:
        because = "a mask, one byte per element" if value.dtype == ir.DataType.BOOL else _reason(value)
    return Kept(str(value.name), how, dense, dense, because)


def _reason(value: ir.Value) -> str:
    uses = [use.node for use in value.uses() if use.node.metadata_props.get("ttac.room") == "autodiff"]
    readers = sorted({node.op_type for node in uses})
    return f"read by the gradient's {', '.join(readers)}" if readers else "the rest is computed from it again"


def _recomputed(value: ir.Value, batch: int) -> Kept:
    return Kept(str(value.name), "recompute", 0, nbytes(value, batch), "cheap to compute again from what is kept")
