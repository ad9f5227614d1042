"""Turned copies of images as a graph, and the mean gradient over the copies (Sun et al., arXiv:1909.13231)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ttac.methods.ttt.rotation import LABELS, TURNS
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import state_input
from ttac.passes.step_graphs import optimizers
from ttac.passes.step_graphs.augmentation import image_sizes
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph, read_gradients, read_parameters
from ttac.passes.step_graphs.drawn_images import drawn_images
from ttac.passes.step_graphs.pixel_range import pixel_range

SEED, TURNED, GRADIENT, BEFORE, MEAN = (
    "rotation.seed", "turned", "rotation.gradient", "rotation.before", "rotation",
)  # fmt: skip
DRAWN = 4
"""Random numbers of a copy: shift down, shift right, mirror, turn."""
WAVES = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
"""Cosine and sine of each turn."""
FLOAT, INT64 = int(ir.DataType.FLOAT), int(ir.DataType.INT64)


def turn(context: Context) -> MethodGraph:
    """`turned`: each image shifted, perhaps mirrored, and turned; `rotation.labels` [N, 4]: its turn as a one."""
    given = drawn_images(context, "turn", SEED, DRAWN)
    op = given.op
    black, _ = pixel_range(context.settings, given.sizes[1])
    with op.at("turn"):
        turned, labels = moved(op, given.images, given.drawn, int(context.settings["shift"]), black)
    return finished(op, {TURNED: turned, LABELS: labels}, [given.seed])


def moved(op: Builder, images: ir.Value, drawn: ir.Value, shift: int, black: np.ndarray) -> tuple[ir.Value, ir.Value]:
    """The `images` [n, C, S, S] moved by the numbers `drawn` [n, 4] in (0, 1], and their turns [n, 4] as ones.

    A pixel from beyond the edge is `black` [C].  A copy is shifted, then mirrored, then turned anticlockwise.
    """
    _, channels, side, _ = image_sizes(images)
    down, right, mirror, turns = op.Split(drawn, [1, 1, 1, 1], axis=1, outputs=4)
    steps = [op.Sub(_number(op, value, 2 * shift + 1), float(shift)) for value in (down, right)]
    sign = op.Sub(1.0, op.Mul(op.Cast(op.Less(mirror, 0.5), to=FLOAT), 2.0))
    number = op.Cast(op.Squeeze(_number(op, turns, TURNS), [1]), to=INT64)
    cosine, sine = op.Split(op.Gather(WAVES, number, axis=0), [1, 1], axis=1, outputs=2)
    centre = (side - 1) / 2
    across, along = (grid.reshape(1, -1).astype(np.float32) - centre for grid in np.indices((side, side)))
    row = op.Add(op.Add(op.Mul(cosine, across), op.Mul(sine, along)), op.Add(steps[0], centre))
    turned = op.Sub(op.Mul(cosine, along), op.Mul(sine, across))
    column = op.Add(op.Mul(turned, sign), op.Add(steps[1], centre))
    flat = op.Reshape(images, [0, channels, -1])
    places = [op.Clip(place, 0.0, float(side - 1)) for place in (row, column)]
    inside = op.And(*(op.Equal(a, b) for a, b in zip(places, (row, column), strict=True)))
    index = op.Cast(op.Add(op.Mul(places[0], float(side)), places[1]), to=INT64)
    picked = op.GatherElements(flat, op.Expand(op.Unsqueeze(index, [1]), op.Shape(flat)), axis=2)
    filled = op.Where(op.Unsqueeze(inside, [1]), picked, black.reshape(1, -1, 1).astype(np.float32))
    labels = op.OneHot(number, [TURNS], op.constant(np.array([0, 1], np.float32)), axis=1)
    return op.Reshape(filled, [-1, channels, side, side], like=images), labels


def _number(op: Builder, drawn: ir.Value, count: int) -> ir.Value:
    """A whole number from 0 to count - 1, as a float, from a number in (0, 1]."""
    return op.Sub(op.Ceil(op.Mul(drawn, float(count))), 1.0)


def no_gradient(context: Context) -> MethodGraph:
    """Zeros, from which the mean over copies starts."""
    op = new_graph("no_gradient", context.opset)
    return finished(op, {GRADIENT: op.Mul(optimizers.flatten(op, read_parameters(op, context)), 0.0)})


def add_gradient(context: Context) -> MethodGraph:
    """The gradient so far and a part of the gradient of this copy, 1 / number of copies, as one vector."""
    op = new_graph("add_gradient", context.opset)
    size = sum(parameter.initial.size for parameter in context.parameters)
    before = state_input(op.graph, BEFORE, np.zeros(size, np.float32))
    gradient = optimizers.flatten(op, read_gradients(op, context))
    return finished(op, {GRADIENT: op.Add(before, op.Mul(gradient, 1.0 / int(context.settings["copies"])))})


def mean_gradient(context: Context) -> MethodGraph:
    """The parts of the vector that belong to the parameters, as `<gradient>.rotation`."""
    op = new_graph("mean_gradient", context.opset)
    size = sum(parameter.initial.size for parameter in context.parameters)
    flat = state_input(op.graph, GRADIENT, np.zeros(size, np.float32))
    parts = optimizers.unflatten(op, flat, context.parameters)
    return finished(op, {_mean(name): part for name, part in zip(context.gradients, parts, strict=True)})


def update(context: Context) -> MethodGraph:
    """The parameters less the mean gradient times the learning rate; the code has no momentum."""
    plain = {**context.settings, "optimizer": "sgd", "momentum": 0.0}
    return optimizers.update(replace(context, settings=plain), [_mean(name) for name in context.gradients])


def _mean(gradient: str) -> str:
    return f"{gradient}.{MEAN}"
