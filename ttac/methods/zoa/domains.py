"""The memory of past domains in ZOA (Deng et al., arXiv:2508.02180), and the mixture of past domains.

A norm's tensor is source + sum_k a_k D_k + d.  D_k are the changes at the end of past domains, D_0 = 0, and a is the
softmax of ten times the mixing weights.  The state holds the whole tensors; d follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs import optimizers
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph, read_parameters

CHANGES, WEIGHTS, COUNT = "domains.changes", "domains.weights", "domains.count"
SHARP = 10.0
"""Factor on the mixing weights in the softmax."""
MARGIN = 0.01
"""Mean change of a tensor above which the newest domain gets a larger weight."""
LARGEST = 10.0
"""Bound of a new mixing weight."""
NEVER, TINY = -1e30, 1e-30
FLOAT, INT64 = int(ir.DataType.FLOAT), int(ir.DataType.INT64)


@dataclass(frozen=True)
class Memory:
    """The state of the memory as graph values.

    Attributes:
        changes: D_k of the past domains [domains, P], the oldest first; rows from `count` on do not count.
        weights: the mixing weights [domains + 1], that of the source first; count: the number of past domains.
    """

    op: Builder
    changes: ir.Value
    weights: ir.Value
    count: ir.Value

    def sharp(self) -> ir.Value:
        """Ten times the mixing weights, and a large negative number where none is."""
        used = self.op.LessOrEqual(np.arange(int(dims(self.weights)[0]), dtype=np.float32), self.count)
        return self.op.Where(used, self.op.Mul(self.weights, SHARP), NEVER)

    def mixture(self) -> ir.Value:
        """sum_k a_k D_k, [P]."""
        op = self.op
        parts = op.Slice(op.Softmax(self.sharp(), axis=0), [1], [np.iinfo(np.int64).max], [0])
        return op.Squeeze(op.MatMul(op.Unsqueeze(parts, [0]), self.changes), [0])


def read_memory(op: Builder, context: Context) -> tuple[Memory, dict[str, np.ndarray]]:
    """The memory as graph inputs, with its first values by name."""
    most, size = int(context.settings["domains"]), sum(p.initial.size for p in context.parameters)
    initial = {
        CHANGES: np.zeros((most, size), np.float32),
        WEIGHTS: np.zeros(most + 1, np.float32),
        COUNT: np.zeros((), np.float32),
    }
    values = [state_input(op.graph, name, array) for name, array in initial.items()]
    return Memory(op, *values), initial


def source_of(context: Context) -> np.ndarray:
    """The compiled trained tensors, one after the other, [P]."""
    return np.concatenate([p.initial.reshape(-1) for p in context.parameters]).astype(np.float32)


def remember(context: Context) -> MethodGraph:
    """The memory with one more domain: the present change of the tensors, which stay as they are.

    In a full memory, the older of the two most similar domains makes room.
    """
    op = new_graph("remember", context.opset)
    before, initial = read_memory(op, context)
    change = op.Sub(optimizers.flatten(op, read_parameters(op, context)), source_of(context))
    most = len(initial[CHANGES])
    kept = _with_room(op, context, before, most)
    own = op.Sub(change, kept.mixture())
    weight = _new_weight(op, kept, op.ReduceMax(_each(op, context, own, op.ReduceMean), keepdims=0))
    place = op.Equal(np.arange(most + 1, dtype=np.float32), op.Add(kept.count, 1.0))
    row = op.Equal(np.arange(most, dtype=np.float32)[:, None], kept.count)
    following = {
        CHANGES: op.Where(row, op.Unsqueeze(change, [0]), kept.changes),
        WEIGHTS: op.Where(place, weight, kept.weights),
        COUNT: op.Add(kept.count, 1.0),
    }
    return finished(op, {}, memory_state(before, initial, following))


def memory_state(
    memory: Memory, initial: Mapping[str, np.ndarray], following: Mapping[str, ir.Value]
) -> list[StateTensor]:
    """The state tensors of the memory that have a `following` value."""
    values = {CHANGES: memory.changes, WEIGHTS: memory.weights, COUNT: memory.count}
    return [
        StateTensor(name=name, role="optimizer", initial=initial[name], value=values[name], next=value)
        for name, value in following.items()
    ]


def _with_room(op: Builder, context: Context, memory: Memory, most: int) -> Memory:
    """The memory without the older of the two most similar domains if it is full, else the memory itself."""
    full = op.GreaterOrEqual(memory.count, float(most))
    left = op.Where(full, _most_similar(op, context, memory, most), op.constant(np.array(most, np.int64)))
    index = _without(op, left, most)
    weights = _without(op, op.Add(left, 1), most + 1)
    count = op.Sub(memory.count, op.Cast(full, to=FLOAT))
    return Memory(op, op.Gather(memory.changes, index, axis=0), op.Gather(memory.weights, weights, axis=0), count)


def _without(op: Builder, left: ir.Value, size: int) -> ir.Value:
    """Positions 0 to size - 1 without `left`; the last one is repeated."""
    every = np.arange(size, dtype=np.int64)
    later = op.Cast(op.GreaterOrEqual(every, left), to=INT64)
    return op.Min(op.Add(every, later), op.constant(np.array(size - 1, np.int64)))


def _most_similar(op: Builder, context: Context, memory: Memory, most: int) -> ir.Value:
    """The older of the two domains with the largest mean cosine of their tensors; the first if none is above 0."""
    sizes = [p.initial.size for p in context.parameters]
    parts: Any = op.Split(memory.changes, sizes, axis=1, outputs=len(sizes))
    parts = parts if isinstance(parts, tuple) else (parts,)
    units = [op.Div(part, op.Max(op.ReduceL2(part, [1], keepdims=1), TINY)) for part in parts]
    rows = op.Concat(*units, axis=1) if len(units) > 1 else units[0]
    cosines = op.Mul(op.MatMul(rows, op.Transpose(rows, perm=[1, 0])), 1 / len(sizes))
    later = np.triu(np.ones((most, most), np.float32), 1)
    first = op.ArgMax(op.Reshape(op.Mul(cosines, later), [-1]), axis=0, keepdims=0)
    return op.Div(first, most)


def _new_weight(op: Builder, memory: Memory, largest: ir.Value) -> ir.Value:
    """The mixing weight of a new domain: at least the largest one.

    If the mean change `largest` of a tensor is above `MARGIN`, the new weight leaves about `MARGIN` of the change to d.
    """
    sharp = memory.sharp()
    factor = op.Sub(op.Div(largest, MARGIN), 1.0)
    wanted = op.Log(op.Max(op.Mul(op.ReduceSum(op.Exp(sharp), keepdims=0), factor), TINY))
    wanted = op.Where(op.Greater(factor, 0.0), wanted, NEVER)
    weight = op.Mul(op.Max(op.ReduceMax(sharp, keepdims=0), wanted), 1 / SHARP)
    return op.Clip(weight, -LARGEST, LARGEST)


def _each(op: Builder, context: Context, flat: ir.Value, reduce: Any) -> ir.Value:
    """The reduced magnitudes of each tensor of the vector, [tensors]."""
    parts = optimizers.unflatten(op, op.Abs(flat), context.parameters)
    each = [op.Reshape(reduce(part, keepdims=0), [1]) for part in parts]
    return op.Concat(*each, axis=0) if len(each) > 1 else each[0]
