"""Norms that follow each sample on its own: its statistics, blended twice with the source's; nothing outlives a step.

LeanTTA (Dong et al., arXiv:2503.15889).  Per channel, with the source's mean m and variance v, and those of one sample
over its positions, m_t and v_t:

    m_b = tau*m + (1 - tau)*m_t,  v_b = tau*v + (1 - tau)*v_t          towards the source by a fixed share,
    d = 1 - exp(-sum over channels of (m_b - m)^2/(v + eps))           how far the blend is from the source, 0 to 1,
    m' = d^lambda*m + (1 - d^lambda)*m_b,  v' likewise                 and by that distance: the farther, the more.

Both blends are one: m' = m + g*(m_t - m) and v' = v + g*(v_t - v) with g = (1 - tau)*(1 - d^lambda), one number for
each sample and norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.autodiff import dims
from ttac.passes.build import LAYER, ROOM, Builder
from ttac.passes.centre import centre, constant
from ttac.passes.norms import NormSite
from ttac.passes.windows import spatial
from ttac.settings import value_at


def has_positions(site: NormSite) -> bool:
    """Whether a channel of one sample has several values at `site`: one has no variance, and is its own mean.

    A norm over [T*N, C], whose first axis is more than the batch, has none either.
    """
    assert site.x.shape is not None
    return site.spatial > 1 and math.prod(int(str(size)) for size in site.x.shape[2:]) == site.spatial


def blend_samples(op: Builder, site: NormSite, settings: Mapping[str, Any], *, single: bool) -> None:
    """Normalise every sample at `site` with its own blend of statistics, in place.

    Args:
        site: a batch norm over [N, C, ...] with more than one position.
        settings: "tau", "lambda", "distance", "metric" and "variance" (`ttac.methods.leantta`).
        single: whether a step has one sample: then the statistics are the norm's own inputs.
    """
    assert has_positions(site)
    x, shift = centre(op, site)
    source_mean, source_var = constant(site.node, 3) - shift, constant(site.node, 4)
    mean, var = moments(op, x, unbiased=settings["variance"] == "unbiased")
    step = op.Sub(mean, source_mean) if source_mean.any() else mean
    share = own_share(op, op.Mul(step, step), source_var + np.float32(site.eps), settings, site.name)
    mean = op.Mul(step, share)
    if source_mean.any():
        mean = op.Add(mean, source_mean)
    var = op.Add(op.Mul(op.Sub(var, source_var), share), source_var)
    (normalise_one if single else normalise_each)(op, site, mean, var)


def moments(op: Builder, x: ir.Value, *, unbiased: bool) -> tuple[ir.Value, ir.Value]:
    """Mean and variance of each channel of each sample of x [N, C, ...], both [N, C].

    A product and its mean take half the time of ReduceSumSquare, which adds one square after the other.  Behind a
    reshape, because an engine would else multiply in the layout of its convolutions and move the product out of it.
    """
    sizes = dims(x)
    flat = op.Reshape(x, [0, sizes[1], -1]) if len(sizes) > 3 else x
    mean = op.ReduceMean(flat, [2], keepdims=0)
    var = op.Max(op.Sub(op.ReduceMean(op.Mul(flat, flat), [2], keepdims=0), op.Mul(mean, mean)), 0.0)
    count = math.prod(spatial(x))
    return mean, op.Mul(var, count / (count - 1)) if unbiased else var


def own_share(op: Builder, squared: ir.Value, var: np.ndarray, settings: Mapping[str, Any], site: str) -> ir.Value:
    """g = (1 - tau)*(1 - d^lambda) [N, 1]: how much a sample's own statistics count.

    d = 1 - exp(-q) comes from t = tanh(q/2) as 2t/(1 + t): exact for a small q, where 1 - exp(-q) would cancel.

    Args:
        squared: squared distance of the sample's mean from the source's [N, C].
        var: the source's variance, epsilon included [C].
    """
    tau, power = (float(value_at(settings, name, site)) for name in ("tau", "lambda"))
    scale = np.maximum(var.astype(np.float64), np.finfo(np.float32).tiny)
    scale = scale**2 if settings["metric"] == "squared" else scale
    count = len(var) if settings["distance"] == "mean" else 1
    weights = np.minimum((1 - tau) ** 2 / scale / count / 2, np.finfo(np.float32).max)
    t = op.Tanh(op.MatMul(squared, weights.astype(np.float32)[:, None]))
    distance = op.Div(op.Add(t, t), op.Add(t, 1.0))
    if power != 1.0:
        distance = op.Pow(distance, power)
    return op.Mul(op.Sub(1.0, distance), 1.0 - tau)


def normalise_one(op: Builder, site: NormSite, mean: ir.Value, var: ir.Value) -> None:
    """Hand mean and variance [1, C] of the only sample to the norm; more than one sample is an error of the engine."""
    for position, value in ((3, mean), (4, var)):
        site.node.replace_input_with(position, op.Squeeze(value, [0]))
    _mark(op, site)


def normalise_each(op: Builder, site: NormSite, mean: ir.Value, var: ir.Value) -> None:
    """Put a slope and an offset for each channel of each sample, from mean and variance [N, C], in the norm's place."""
    node, x = site.node, site.node.inputs[0]
    assert x is not None and x.shape is not None
    scale, bias = node.inputs[1:3]
    axes = list(range(2, len(x.shape)))
    slope = op.Div(scale, op.Sqrt(op.Add(var, float(site.eps))))
    offset = op.Sub(bias, op.Mul(mean, slope))
    y = op.Add(op.Mul(x, op.Unsqueeze(slope, axes)), op.Unsqueeze(offset, axes))
    node.outputs[0].replace_all_uses_with(y, replace_graph_outputs=True)
    op.graph.remove(node, safe=True)


def _mark(op: Builder, site: NormSite) -> None:
    site.node.metadata_props[ROOM] = op.room
    site.node.metadata_props[LAYER] = site.name
