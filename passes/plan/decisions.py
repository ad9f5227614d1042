"""Records of a plan: one decision for each value that the backward reads, with its bytes and its reason."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.keys import ROOM_KEY, SAMPLE_BYTES
from ttac.passes.graph.shapes import dims, sample_size
from ttac.passes.plan.codecs import CODECS

SMALL_BYTES = 64 * 1024
"""Bytes up to which a tensor counts as small: its memory does not decide whether a node runs twice."""
STATISTIC_BYTES = 4 * 1024
"""Bytes up to which a value is kept, not recomputed from a residual that has an error."""

DIVISIONS = frozenset("Reciprocal Log Sqrt Pow".split())
"""Operators in addition to Div that are infinite, or have no derivative, where their input is 0."""


def divides_by(node: ir.Node, position: int) -> bool:
    """Whether the node divides by its input at `position`, which eight bits may round to 0."""
    return node.op_type in DIVISIONS or (node.op_type == "Div" and position == 1)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How one value of the forward reaches the backward, at the batch of the plan.

    Attributes:
        value: name of the value in the joint graph.
        how: name of a codec, or "recompute".
        bytes: bytes of the encoded value, for the whole batch.
        dense: bytes of the value without a codec.
        because: the reason, for the report.
        keep_ratio: keep ratio that `bytes` assumes, for a codec that drops elements; the report prints the ratio.
        layers: positions of the layers whose keep ratios govern the value at run time; the largest ratio counts.
    """

    value: str
    how: str
    bytes: int
    dense: int
    because: str
    keep_ratio: float = 1.0
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class KeepRatios:
    """Keep ratio of every layer, float32 [layers]: state `name` if a graph `moves` the ratios, else a constant.

    `numbers` is the state of the random numbers that draw the kept parts; empty if nothing is drawn.
    """

    name: str
    initial: np.ndarray
    moves: bool
    numbers: str = ""


@dataclass(frozen=True)
class Plan:
    """All decisions at `batch` samples, the keep ratios that the codecs read, and names of the moved state.

    The forward moves the state `moved`, so the backward must not read these inputs of the joint graph.
    """

    batch: int
    decisions: tuple[Decision, ...] = ()
    keep_ratios: KeepRatios | None = None
    moved: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of all residuals at the planned batch."""
        return sum(decision.bytes for decision in self.decisions)

    @property
    def dense(self) -> int:
        """Bytes of all values that the gradients read, without codecs and without recomputation."""
        return sum(decision.dense for decision in self.decisions)

    @property
    def residuals(self) -> tuple[str, ...]:
        """Names of the values that cross from the forward to the backward."""
        return tuple(decision.value for decision in self.decisions if decision.how != "recompute")

    @property
    def is_exact(self) -> bool:
        """Whether every value reaches the backward without an error."""
        return all(row.how == "recompute" or CODECS[row.how].is_exact for row in self.decisions)

    def exactly(self) -> Plan:
        """Return the same plan with every residual kept dense."""
        rows = [row if row.how == "recompute" else replace(row, how="dense", bytes=row.dense) for row in self.decisions]
        return replace(self, decisions=tuple(rows), keep_ratios=None)

    def largest(self, count: int = 5) -> list[Decision]:
        """Return the `count` decisions with most bytes, largest first."""
        return sorted(self.decisions, key=lambda row: (-row.bytes, row.value))[:count]


Decide = Callable[[ir.Value, Set[ir.Node]], Decision]
"""Chooses the codec of a value of the cut; the second argument holds the nodes of the backward."""


def nbytes(value: ir.Value, batch: int) -> int:
    """Return the bytes of `value` with `batch` samples.

    Every dimension except "N" must be known.  Raises UnsupportedError for an unknown dtype or dimension.
    """
    if value.dtype is None:
        raise UnsupportedError(f"the type of `{value.name}` is unknown")
    if SAMPLE_BYTES in value.meta:
        return int(batch * value.meta[SAMPLE_BYTES])
    samples = batch if any(isinstance(size, str) for size in dims(value)) else 1
    assert value.shape is not None
    return max(1, samples * sample_size(value.shape) * value.dtype.bitwidth // 8)


def keep_as(value: ir.Value, how: str, batch: int, because: str = "", keep_ratio: float = 1.0) -> Decision:
    """Return the decision that keeps `value` by the codec `how`, with this `keep_ratio`."""
    dense = nbytes(value, batch)
    size = dense
    if how == "bits":
        size, because = -(-dense // 8), because or "the gradient needs one bit of it"
    elif how != "dense":
        size = int(batch * CODECS[how].bytes(value, keep_ratio))
    elif not because:
        because = "a mask, one byte per element" if value.dtype == ir.DataType.BOOL else _reason(value)
    ratio = keep_ratio if how not in ("bits", "dense") else 1.0
    return Decision(value=str(value.name), how=how, bytes=size, dense=dense, because=because, keep_ratio=ratio)


def recomputed(value: ir.Value, batch: int) -> Decision:
    """Return the decision that the backward recomputes `value`."""
    because = "cheap to compute again from the kept values"
    return Decision(value=str(value.name), how="recompute", bytes=0, dense=nbytes(value, batch), because=because)


def _reason(value: ir.Value) -> str:
    uses = [use.node for use in value.uses() if use.node.metadata_props.get(ROOM_KEY) == "autodiff"]
    readers = sorted({node.op_type for node in uses})
    return f"read by the gradient's {', '.join(readers)}" if readers else "the rest is computed from it again"
