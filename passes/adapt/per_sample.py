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

from ttac.passes.adapt.blend_weight import own_share, shortened
from ttac.passes.adapt.centre import centre, constant, is_counted
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER, ROOM_KEY
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.windows import spatial
from ttac.passes.norms.norm_sites import NormSite


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
    mean, var = (moments_of_one if single else moments)(op, x, unbiased=settings["variance"] == "unbiased")
    step = op.Sub(mean, shortened(source_mean)) if source_mean.any() else mean
    share = own_share(op, step, source_var + np.float32(site.eps), settings, site.name, counted=is_counted(x))
    mean = op.Mul(step, share)
    if source_mean.any():
        mean = op.Add(mean, shortened(source_mean))
    var = op.Add(op.Mul(op.Sub(var, shortened(source_var)), share), shortened(source_var))
    (normalise_one if single else normalise_each)(op, site, mean, var)


def moments_of_one(op: Builder, x: ir.Value, *, unbiased: bool) -> tuple[ir.Value, ir.Value]:
    """Mean and variance of each channel of x [1, C, ...], both [C]; more than one sample is an error of the engine."""
    flat = op.Reshape(x, [dims(x)[1], math.prod(spatial(x))])
    mean = op.ReduceMean(flat, [1], keepdims=0)
    square = op.ReduceMean(op.Mul(flat, flat), [1], keepdims=0)
    return mean, _variance(op, mean, square, math.prod(spatial(x)), unbiased=unbiased)


def _variance(op: Builder, mean: ir.Value, square: ir.Value, count: int, *, unbiased: bool) -> ir.Value:
    var = op.Max(op.Sub(square, op.Mul(mean, mean)), 0.0)
    return op.Mul(var, count / (count - 1)) if unbiased else var


def moments(op: Builder, x: ir.Value, *, unbiased: bool) -> tuple[ir.Value, ir.Value]:
    """Mean and variance of each channel of each sample of x [N, C, ...], both [N, C].

    A product and its mean take half the time of ReduceSumSquare, which adds one square after the other.  Behind a
    reshape, because an engine would else multiply in the layout of its convolutions and move the product out of it.
    """
    sizes = dims(x)
    flat = op.Reshape(x, [0, sizes[1], -1]) if len(sizes) > 3 else x
    mean = op.ReduceMean(flat, [2], keepdims=0)
    square = op.ReduceMean(op.Mul(flat, flat), [2], keepdims=0)
    return mean, _variance(op, mean, square, math.prod(spatial(x)), unbiased=unbiased)


def normalise_one(op: Builder, site: NormSite, mean: ir.Value, var: ir.Value) -> None:
    """Hand mean and variance [C] of the only sample to the norm."""
    for position, value in ((3, mean), (4, var)):
        site.node.replace_input_with(position, value)
    site.node.metadata_props[ROOM_KEY] = op.room
    site.node.metadata_props[LAYER] = site.name


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
