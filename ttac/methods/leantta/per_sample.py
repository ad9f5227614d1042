"""Norms that follow each sample alone: its statistics, blended twice with the source's; no state survives a step.

LeanTTA (Dong et al., arXiv:2503.15889).  Per channel, with the source's mean m and variance v, and those of one sample
over its positions, m_t and v_t:

    m_b = tau*m + (1 - tau)*m_t,  v_b = tau*v + (1 - tau)*v_t          towards the source by a fixed weight,
    d = 1 - exp(-sum over channels of (m_b - m)^2/(v + eps))           distance of the blend from the source, 0 to 1,
    m' = d^lambda*m + (1 - d^lambda)*m_b,  v' likewise                 towards the source by that distance.

Both blends together: m' = m + g*(m_t - m) and v' = v + g*(v_t - v) with g = (1 - tau)*(1 - d^lambda), one number for
each sample and norm.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ttac.methods.leantta.blend_weight import blend_weight, shortened
from ttac.passes.adapt.adapt_norms import Rewriter, has_positions
from ttac.passes.adapt.centre import centre, constant, is_counted
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor
from ttac.passes.graph.windows import spatial
from ttac.passes.norms.norm_sites import NormSite


def blend_samples(rewriter: Rewriter, site: NormSite) -> list[StateTensor]:
    """Normalise every sample at `site`, a batch norm over [N, C, ...] with more than one position, in place.

    In a step of one sample the statistics become inputs of the norm; otherwise a scale and an offset of each sample
    replace the norm.
    """
    assert has_positions(site)
    op, settings, single = rewriter.op, rewriter.settings, rewriter.batch == 1
    x, shift = centre(op, site)
    source_mean, source_var = constant(site.node, 3) - shift, constant(site.node, 4)
    mean, var = (moments_of_one if single else moments)(op, x, unbiased=settings["variance"] == "unbiased")
    step = op.Sub(mean, shortened(source_mean)) if source_mean.any() else mean
    weight = blend_weight(op, step, source_var + np.float32(site.eps), settings, site.name, counted=is_counted(x))
    mean = op.Mul(step, weight)
    if source_mean.any():
        mean = op.Add(mean, shortened(source_mean))
    var = op.Add(op.Mul(op.Sub(var, shortened(source_var)), weight), shortened(source_var))
    if single:
        rewriter.normalise_with(site, mean, var)
    else:
        normalise_each(op, site, mean, var)
    return []


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


def normalise_each(op: Builder, site: NormSite, mean: ir.Value, var: ir.Value) -> None:
    """Put a scale and an offset for each channel of each sample, from mean and variance [N, C], in the norm's place."""
    node, x = site.node, site.node.inputs[0]
    assert x is not None and x.shape is not None
    scale, bias = node.inputs[1:3]
    axes = list(range(2, len(x.shape)))
    factor = op.Div(scale, op.Sqrt(op.Add(var, float(site.eps))))
    offset = op.Sub(bias, op.Mul(mean, factor))
    y = op.Add(op.Mul(x, op.Unsqueeze(factor, axes)), op.Unsqueeze(offset, axes))
    node.outputs[0].replace_all_uses_with(y, replace_graph_outputs=True)
    op.graph.remove(node, safe=True)
