"""The memory of RoTTA (Yuan et al., arXiv:2303.13899): classes in balance, new and certain samples preferred.

A sample counts age_weight/(1 + e^(-age/size)) + doubt_weight * entropy/ln(classes).  A sample of a class with less than
its share enters: a full memory gives up the sample that counts most among the largest classes.  A sample of another
class takes the place of the one that counts most in this class.  The new sample must count less than the one it
replaces.  The filled places are the first ones, because a sample leaves only for another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ttac.methods.rotta import SAMPLES
from ttac.passes.differentiate.losses import WEIGHTS
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph, read

CLASSES, DOUBTS, AGES, COUNT, KEPT, SEEN = (
    f"memory.{name}" for name in ("classes", "entropies", "ages", "count", "images", "seen")
)
NEVER = -1e30
FLOAT, INT64 = int(ir.DataType.FLOAT), int(ir.DataType.INT64)


def insert(context: Context) -> MethodGraph:
    """The memory after one more sample of the batch, the one with the number `before.number`; all samples grow older.

    `places` [memory] says which samples the places hold: those before this step from 0, those of the batch behind them.
    Beyond the last sample of the batch nothing changes.
    """
    op, size = new_graph("insert", context.opset), int(context.settings["capacity"])
    state = _state(op, size)
    classes, doubts, ages, count = (state[name].value for name in (CLASSES, DOUBTS, AGES, COUNT))
    labels, entropies = (read(op, name, ["N"]) for name in ("sample.classes", "sample.entropies"))
    places, number = read(op, "before.places", [size]), read(op, "before.number", ())
    total = op.Cast(op.Squeeze(op.Shape(labels), [0]), to=FLOAT)
    there = op.Less(number, total)
    index = op.Cast(op.Min(number, op.Sub(total, 1.0)), to=INT64)
    label, doubt = op.Gather(labels, index, axis=0), op.Gather(entropies, index, axis=0)
    used = op.Less(np.arange(size, dtype=np.float32), count)
    chosen, appends = _place(op, context, state, (label, doubt), used)
    chosen, appends = op.And(there, chosen), op.And(there, appends)
    following = {
        CLASSES: op.Where(chosen, label, classes),
        DOUBTS: op.Where(chosen, doubt, doubts),
        AGES: op.Add(op.Where(chosen, 0.0, ages), op.Cast(op.And(there, op.Or(used, chosen)), to=FLOAT)),
        COUNT: op.Add(count, op.Cast(appends, to=FLOAT)),
    }
    outputs = {"places": op.Where(chosen, op.Add(number, float(size)), places), "number": op.Add(number, 1.0)}
    return finished(op, outputs, [replace(state[name], next=value) for name, value in following.items()])


def _place(
    op: Builder,
    context: Context,
    state: Mapping[str, StateTensor],
    sample: tuple[ir.Value, ir.Value],
    used: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """The place of the `sample`, its class and entropy, as truth values [memory], none if it stays out.

    Also whether it takes a free place.  `used` [memory] are the filled places.
    """
    classes, count = state[CLASSES].value, state[COUNT].value
    size, (label, doubt) = int(context.settings["capacity"]), sample
    ones = op.Cast(used, to=FLOAT)
    alike = op.Cast(op.Equal(op.Unsqueeze(classes, [0]), op.Unsqueeze(classes, [1])), to=FLOAT)
    numbers = op.Mul(op.Squeeze(op.MatMul(op.Unsqueeze(ones, [0]), alike), [0]), ones)
    same = op.And(used, op.Equal(classes, label))
    own = op.ReduceSum(op.Cast(same, to=FLOAT), keepdims=0)
    is_rare, is_full = op.Less(own, size / context.classes), op.GreaterOrEqual(count, float(size))
    majority = op.And(used, op.Equal(numbers, op.ReduceMax(numbers, keepdims=0)))
    # Engines have no Where of truth values.
    leaving = op.Or(op.And(is_rare, majority), op.And(op.Not(is_rare), same))
    scores = op.Where(leaving, _score(op, context, state[AGES].value, state[DOUBTS].value), NEVER)
    replaced = op.Cast(op.ArgMax(scores, axis=0, keepdims=0), to=FLOAT)
    worse = op.Greater(op.ReduceMax(scores, keepdims=0), _score(op, context, op.Mul(doubt, 0.0), doubt))
    appends = op.And(is_rare, op.Not(is_full))
    position = op.Where(appends, count, replaced)
    here = op.Equal(np.arange(size, dtype=np.float32), position)
    return op.And(op.Or(appends, worse), here), appends


def _score(op: Builder, context: Context, ages: ir.Value, doubts: ir.Value) -> ir.Value:
    """How much samples count against themselves; the largest leaves first."""
    settings = context.settings
    aged = op.Sigmoid(op.Mul(ages, 1 / int(settings["capacity"])))
    unsure = op.Mul(doubts, float(settings["doubt_weight"]) / math.log(context.classes))
    return op.Add(op.Mul(aged, float(settings["age_weight"])), unsure)


def store(context: Context) -> MethodGraph:
    """The samples that the memory holds now, their weights in the loss, and `memory.due`: 1 if the student shall learn.

    A sample of age a weighs 1/(1 + e^a), with a in sizes of the memory (eq. 12).
    """
    op, size = new_graph("store", context.opset), int(context.settings["capacity"])
    x = context.x
    assert x is not None
    images = ir.val(str(x.name), dtype=x.dtype, shape=x.shape)
    op.graph.inputs.append(images)
    sizes = [int(n) for n in dims(x)[1:]]
    empty, zero = np.zeros([size, *sizes], np.float32), np.zeros((), np.float32)
    kept, seen = state_input(op.graph, KEPT, empty), state_input(op.graph, SEEN, zero)
    places, ages, count = read(op, "places", [size]), read(op, AGES, [size]), read(op, COUNT, ())
    held = op.Gather(op.Concat(kept, images, axis=0), op.Cast(places, to=INT64), axis=0)
    held.shape = ir.Shape([size, *sizes])
    filled = op.Unsqueeze(op.Cast(count, to=INT64), [0])
    weights = op.Sigmoid(op.Mul(op.Slice(ages, [0], filled, [0]), -1 / size))
    total = op.Add(seen, op.Cast(op.Squeeze(op.Shape(images, start=0, end=1), [0]), to=FLOAT))
    interval = float(context.settings["interval"])
    due = op.GreaterOrEqual(total, interval)
    rest = op.Sub(total, op.Mul(op.Floor(op.Div(total, interval)), interval))
    outputs = {
        SAMPLES: op.Slice(held, [0], filled, [0]),
        WEIGHTS: weights,
        "memory.due": op.Cast(due, to=FLOAT),
        "memory.filled": op.Identity(count),
    }
    moved = [
        StateTensor(name=KEPT, role="counter", initial=empty, value=kept, next=held),
        StateTensor(name=SEEN, role="counter", initial=zero, value=seen, next=rest),
    ]
    return finished(op, outputs, moved, {"memory.filled": "memory"})


def _state(op: Builder, size: int) -> dict[str, StateTensor]:
    """The classes, entropies and ages of the samples, and their number, as graph inputs."""
    zeros, zero = np.zeros(size, np.float32), np.zeros((), np.float32)
    initial = {CLASSES: zeros - 1, DOUBTS: zeros, AGES: zeros, COUNT: zero}
    return {
        name: StateTensor(name=name, role="counter", initial=array, value=state_input(op.graph, name, array))
        for name, array in initial.items()
    }
