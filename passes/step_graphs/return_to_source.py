"""Predictions with running averages that return to the source's statistics where a batch belongs to the source.

Predictions with running averages read the statistics of earlier samples.  After a shift, or broken samples, they would
spoil clean batches.  So, with the guard, a batch that lies nearer to the source than to the averages is predicted with
the source's statistics in every norm.  The first two norms decide: the part of the model between them runs once with
the source's statistics and once with the averages, and the batch's statistics on each of the two ways are compared with
those of that way.  One norm does not suffice: in the first, noise can lie as near to the source as clean samples do.

A memory of samples would keep broken ones for ever where the net is certain of them, as it is of huge values.  So the
first norm also tells whether the batch lies so far from the source that no shift of the data explains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt.adapt_norms import FARTHEST, between
from ttac.passes.differentiate.reverse_walk import nodes_between
from ttac.passes.graph import composites
from ttac.passes.graph.builder import Builder
from ttac.passes.norms.norm_sites import NormSite

ROOM = "return"
NEARER, IN_REACH = "statistics.nearer", "statistics.in_reach"
"""A value: whether the batch lies nearer to the source than to the averages.  An output: 1 if it lies in reach of the
source, else 0."""
FAR = 5.0
"""The reach, in deviations of the source.

On the shipped nets, the fifteen corruptions lie at most 1.1 from the source at severity 5, and white noise 2.5.  Broken
batches that the net is certain of lie at 7 and more: an offset of 3, bytes for numbers from 0 to 1, a hot pixel.
"""
LONGEST = 32
"""Most nodes between the first two norms; with more, the first norm decides alone."""


@dataclass(frozen=True, eq=False)
class _Statistics:
    """Means and deviations of the channels, [C]."""

    mean: ir.Value
    deviation: ir.Value


def return_to_source(model: ir.Model, sites: Sequence[NormSite]) -> None:
    """Let the batch norms of `sites`, whose nodes read averages, take the source's statistics for a batch nearer to it.

    The model changes in place, and gets the output `IN_REACH`, a float scalar.  It stays as it is without a batch norm.
    """
    norms = [site for site in sites if site.kind == "batch"]
    if not norms:
        return
    graph, (first, *others) = model.graph, norms
    op = Builder(graph, ROOM, model.opset_imports[""])
    with op.at(first.name):
        batch = _of_batch(op, _input(first), first)
        inside = _is_inside(op, batch, first)
        ways = [_apart(op, batch, statistics, first) for statistics in (_source(op, first), _averages(op, first))]
        for second in others[:1]:
            for number, values in enumerate(_both_ways(op, first, _input(second))):
                statistics = _averages(op, second) if number else _source(op, second)
                ways[number] = op.Add(ways[number], _apart(op, _of_batch(op, values, second), statistics, second))
        nearer = op.Less(*ways, name=NEARER)
    for site in norms:
        with op.at(site.name):
            for position, source in ((3, site.mean), (4, site.var)):
                assert source is not None
                site.node.replace_input_with(position, op.Where(nearer, source, site.node.inputs[position]))
    graph.outputs.append(inside)
    graph.sort()


def _both_ways(op: Builder, first: NormSite, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The value `x` where the `first` norm reads the source's statistics, and where it reads the averages.

    The same value twice where it does not depend on that norm, or where the part between them cannot be copied.
    """
    between_them = nodes_between(op.graph, [first.y], x, detached=True)
    if not between_them or len(between_them) > LONGEST or not all(_is_plain(node) for node in between_them):
        return x, x
    ways = []
    for mean, var in ((first.mean, first.var), first.node.inputs[3:5]):
        known: dict[ir.Value, ir.Value] = {}
        _copy(op, first.node, known, [*first.node.inputs[:3], mean, var])
        for node in between_them:
            _copy(op, node, known, [known.get(value, value) if value is not None else None for value in node.inputs])
        ways.append(known[x])
    return ways[0], ways[1]


def _is_plain(node: ir.Node) -> bool:
    """Whether the node is an operator without graphs inside."""
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return node.domain in ("", composites.DOMAIN) and all(a.type not in graphs for a in node.attributes.values())


def _copy(
    op: Builder, node: ir.Node, known: dict[ir.Value, ir.Value], inputs: Sequence[ir.Value | np.ndarray | None]
) -> None:
    """A copy of the node with other `inputs`; `known` leads from its outputs to those of the copy."""
    made = op.node(node.op_type, inputs, dict(node.attributes), outputs=len(node.outputs))
    outputs = made if isinstance(made, tuple) else (made,)
    for old, new in zip(node.outputs, outputs, strict=True):
        new.shape = old.shape
        known[old] = new


def _input(site: NormSite) -> ir.Value:
    """The value that the site's node reads now."""
    x = site.node.inputs[0]
    assert x is not None
    return x


def _of_batch(op: Builder, x: ir.Value, site: NormSite) -> _Statistics:
    mean, var = op.Moments(x)
    return _Statistics(mean, op.Sqrt(op.Add(var, site.eps)))


def _averages(op: Builder, site: NormSite) -> _Statistics:
    mean, var = site.node.inputs[3:5]
    assert mean is not None
    return _Statistics(mean, op.Sqrt(op.Add(var, site.eps)))


def _source(op: Builder, site: NormSite) -> _Statistics:
    mean, deviation = _constants(site)
    return _Statistics(op.constant(mean), op.constant(deviation))


def _constants(site: NormSite) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the source, [C]."""
    assert site.mean is not None and site.var is not None
    return site.mean.astype(np.float32), np.sqrt(site.var + site.eps).astype(np.float32)


def _apart(op: Builder, batch: _Statistics, other: _Statistics, site: NormSite) -> ir.Value:
    """The distance of the batch from the `other` statistics, in deviations of the source, a scalar.

    It is the root of the mean over channels of (m - m')^2 + (s - s')^2 in units of the source's variance, with means m
    and deviations s: the 2-Wasserstein distance of normal distributions (Olkin and Pukelsheim, 1982).  No mean and no
    deviation counts beyond `FARTHEST` deviations of the source.
    """
    mean, deviation = _constants(site)
    far = FARTHEST * deviation
    means = [between(op, value.mean, mean, far) for value in (batch, other)]
    spreads = [op.Min(value.deviation, far) for value in (batch, other)]
    return op.Sqrt(_mean_square(op, op.Sub(*means), op.Sub(*spreads), deviation))


def _is_inside(op: Builder, batch: _Statistics, site: NormSite) -> ir.Value:
    """1 if the batch lies at most `FAR` deviations from the source, with no bound of a channel, else 0, a scalar."""
    mean, deviation = _constants(site)
    square = _mean_square(op, op.Sub(batch.mean, mean), op.Sub(batch.deviation, deviation), deviation)
    # Not a number is not at most the limit: such a batch is out of reach.
    return op.Cast(op.LessOrEqual(square, FAR**2), to=int(ir.DataType.FLOAT), name=IN_REACH)


def _mean_square(op: Builder, means: ir.Value, spreads: ir.Value, deviation: np.ndarray) -> ir.Value:
    total = op.Add(op.Mul(means, means), op.Mul(spreads, spreads))
    return op.ReduceMean(op.Div(total, deviation**2), keepdims=0)
