"""Random distortions of a batch of images as a graph (Wang et al., arXiv:2203.13591).

Colours are jittered, then the image is rotated, moved, scaled, blurred, perhaps mirrored, and gets noise.  One draw is
for the whole batch.  Padding, affine transform, crop and mirror are one bilinear sampling.  The result equals that of
the separate steps: a symmetric blur does not depend on a mirror, and the sampling adds two rows and columns on each
side.
Brightness, contrast, saturation, hue and gamma come in this order; the official code shuffles them.

The light form (Marsden et al., arXiv:2306.00650) has neither blur nor noise, and mirrors the image at its edges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.losses import mean
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.operators.random_numbers import Numbers, seeded
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph, read

AUGMENTED, OUTSIDE, SEED = "augmented", "augmented.outside", "augmentation.seed"
NOISE = 0.005
"""Standard deviation of the noise, of a range from 0 to 1."""
CHOSEN = "chosen"
"""Prefix of the name of the number of chosen samples."""
RIM = 2
"""Rows and columns on each side that the blur reads."""
GREY = np.array([0.2989, 0.587, 0.114], np.float32).reshape(1, 3, 1, 1)
"""Weights of red, green and blue in the brightness."""
STRAY = 0.01
"""Fraction of the range beyond which a value is outside, and fraction of outside values that a range may have."""
DRAWN = {
    "brightness": (0.6, 1.4),
    "contrast": (0.7, 1.3),
    "saturation": (0.5, 1.5),
    "hue": (-0.06, 0.06),
    "gamma": (0.7, 1.3),
    "angle": (-15.0, 15.0),
    "right": (-1 / 8, 1 / 8),
    "down": (-1 / 8, 1 / 8),
    "scale": (0.9, 1.1),
    "blur": (0.001, 0.5),
    "mirror": (-1.0, 1.0),
}
"""Bounds of each uniform random number.

Units: factors; turns of the colour circle; degrees; fractions of the image's width and height; pixels of the blur's
standard deviation.  An image is mirrored below 0.  The paper's sixteenth is of an image padded to twice its size.
"""


@dataclass(frozen=True)
class Drawn:
    """The random numbers of a batch: scalars [1] as in `DRAWN`, and standard normal noise like the images or none."""

    numbers: Mapping[str, ir.Value]
    noise: ir.Value | None

    def __getitem__(self, name: str) -> ir.Value:
        return self.numbers[name]


def augment(
    context: Context, low: np.ndarray, high: np.ndarray, seed: int, *, light: bool = False, chosen: str = ""
) -> MethodGraph:
    """`augmented` is the model's input distorted; `augmented.outside` the fraction of its values outside the range.

    Args:
        low, high: the least and the largest value of a pixel, as the model reads them, one for each channel.
        seed: start of the random numbers.
        light: neither blur nor noise, and edges that mirror.
        chosen: name of weights [N]; only samples with a weight above 0 are distorted.  All samples, without a name.
    """
    x = context.x
    assert x is not None
    op = new_graph("augment", context.opset)
    sizes = image_sizes(x)
    images = ir.val(str(x.name), dtype=x.dtype, shape=x.shape)
    op.graph.inputs.append(images)
    initial = seeded(seed)
    numbers = Numbers(op, state_input(op.graph, SEED, initial))
    with op.at("draw"):
        drawn = draw(op, numbers, images, 0 if light else context.batch)
    with op.at("range"):
        span, least = (bound.astype(np.float32).reshape(1, -1, 1, 1) for bound in (high - low, low))
        unit = op.Div(op.Sub(images, least), span)
        inside = op.Clip(unit, 0.0, 1.0)
        stray = op.Greater(op.Abs(op.Sub(unit, inside)), STRAY)
        outside = mean(op, op.Cast(stray, to=int(ir.DataType.FLOAT)), "stray")
    if chosen:
        count, *image = dims(images)
        inside = op.Compress(inside, op.Greater(read(op, chosen, (count,)), 0.0), axis=0)
        inside.shape = ir.Shape([f"{CHOSEN}.{count}", *image])
    distorted = distort(op, inside, drawn)
    with op.at("range"):
        back = op.Add(op.Mul(distorted, span), least)
    taken = len(DRAWN) + (0 if light else context.batch * math.prod([*sizes[1:-1], 2 * -(-sizes[-1] // 2)]))
    state = StateTensor(name=SEED, role="counter", initial=initial, value=numbers.state, next=numbers.following(taken))
    return finished(op, {AUGMENTED: back, OUTSIDE: outside}, [state], {OUTSIDE: "outside"})


def draw(op: Builder, numbers: Numbers, images: ir.Value, batch: int) -> Drawn:
    """The numbers of one step for `images` [n, C, H, W], n at most `batch`; no noise if `batch` is 0."""
    _, *sizes = image_sizes(images)
    lows, highs = (np.array(bounds, np.float32) for bounds in zip(*DRAWN.values(), strict=True))
    uniform = numbers.uniform(len(DRAWN))
    drawn = op.Add(op.Mul(uniform, highs - lows), lows)
    each = op.Split(drawn, [1] * len(DRAWN), axis=0, outputs=len(DRAWN))
    count = op.Shape(images, start=0, end=1)
    noise = numbers.normal(len(DRAWN), count, batch, sizes) if batch else None
    return Drawn(dict(zip(DRAWN, each, strict=True)), noise)


def distort(op: Builder, images: ir.Value, drawn: Drawn) -> ir.Value:
    """`images` [n, C, H, W] with values from 0 to 1, distorted, again from 0 to 1."""
    with op.at("colours"):
        distorted = jitter(op, images, drawn)
    with op.at("move"):
        distorted = move(op, distorted, drawn)
    if drawn.noise is None:
        return op.Clip(op.Reshape(distorted, [-1, *image_sizes(images)[1:]], like=images), 0.0, 1.0)
    with op.at("blur"):
        distorted = blur(op, distorted, drawn["blur"], images)
    with op.at("noise"):
        return op.Clip(op.Add(distorted, op.Mul(drawn.noise, NOISE)), 0.0, 1.0)


def jitter(op: Builder, images: ir.Value, drawn: Drawn) -> ir.Value:
    """Brightness, contrast, saturation, hue and gamma in this order, as torchvision computes them.

    Images of one channel have no saturation and no hue.
    """
    coloured = dims(images)[1] == 3
    distorted: ir.Value = op.Clip(op.Mul(images, drawn["brightness"]), 0.0, 1.0)
    distorted = blend(op, distorted, op.ReduceMean(grey(op, distorted), [1, 2, 3], keepdims=1), drawn["contrast"])
    if coloured:
        distorted = blend(op, distorted, grey(op, distorted), drawn["saturation"])
        distorted = turn(op, distorted, drawn["hue"])
    return op.Pow(op.Clip(distorted, 1e-8, 1.0), drawn["gamma"])


def grey(op: Builder, images: ir.Value) -> ir.Value:
    """The brightness of each pixel, [n, 1, H, W]."""
    return op.ReduceSum(op.Mul(images, GREY), [1], keepdims=1) if dims(images)[1] == 3 else images


def blend(op: Builder, images: ir.Value, other: ir.Value, factor: ir.Value) -> ir.Value:
    """factor*images + (1 - factor)*other, from 0 to 1."""
    return op.Clip(op.Add(op.Mul(op.Sub(images, other), factor), other), 0.0, 1.0)


def turn(op: Builder, images: ir.Value, hue: ir.Value) -> ir.Value:
    """The hue of colours [n, 3, H, W] turned by `hue` of a circle; largest and smallest channel stay.

    Of hue h in sixths, a channel is max - (max - min)*clip(min(k, 4 - k), 0, 1), k = (n + h) mod 6, n = 5, 3, 1 of
    red, green, blue.
    """
    red, green, blue = op.Split(images, [1, 1, 1], axis=1, outputs=3)
    largest, smallest = op.ReduceMax(images, [1], keepdims=1), op.ReduceMin(images, [1], keepdims=1)
    spread = op.Sub(largest, smallest)
    # A pixel without colour has no hue: any value gives the same pixel.
    some = op.Add(spread, op.Cast(op.Equal(spread, 0.0), to=int(ir.DataType.FLOAT)))
    of_red = op.Sub(green, blue)
    of_green = op.Add(op.Sub(blue, red), op.Mul(some, 2.0))
    of_blue = op.Add(op.Sub(red, green), op.Mul(some, 4.0))
    rest = op.Where(op.Equal(largest, green), of_green, of_blue)
    h = op.Div(op.Where(op.Equal(largest, red), of_red, rest), some)
    k = op.Add(op.Add(h, op.Mul(hue, 6.0)), np.array([5, 3, 1], np.float32).reshape(1, 3, 1, 1))
    k = op.Sub(k, op.Mul(op.Floor(op.Div(k, 6.0)), 6.0))
    fraction = op.Clip(op.Min(k, op.Sub(4.0, k)), 0.0, 1.0)
    return op.Sub(largest, op.Mul(spread, fraction))


def move(op: Builder, images: ir.Value, drawn: Drawn) -> ir.Value:
    """Rotated, moved by whole pixels, scaled and mirrored, with a rim for the blur: [1, n*C, H + 4, W + 4].

    Positions beyond the edge read the edge; no corner reads farther than the paper pads.  The light form has no rim,
    and positions beyond the edge read the mirror image.
    """
    height, width = image_sizes(images)[2:]
    light = drawn.noise is None
    grid = sampled(op, height, width, drawn)
    flat = op.Reshape(images, [1, -1, height, width])
    mode, padding = "linear" if op.opset >= 20 else "bilinear", "reflection" if light else "border"
    return op.GridSample(flat, grid, mode=mode, padding_mode=padding, align_corners=int(light))


def sampled(op: Builder, height: int, width: int, drawn: Drawn) -> ir.Value:
    """Source position of each pixel, [1, H + 4, W + 4, 2], in halves of the image from its centre.

    Without noise there is no rim, and the halves end at the centres of the last pixels, where a mirror stands.
    """
    rim, end = (0, 1) if drawn.noise is None else (RIM, 0)
    radians = op.Mul(drawn["angle"], math.pi / 180)
    cosine, sine = (op.Div(wave, drawn["scale"]) for wave in (op.Cos(radians), op.Sin(radians)))
    is_mirrored = op.Cast(op.Less(drawn["mirror"], 0.0), to=int(ir.DataType.FLOAT))
    sign = op.Sub(1.0, op.Mul(is_mirrored, 2.0))
    places = [np.arange(size + 2 * rim, dtype=np.float32) - (size - 1) / 2 - rim for size in (height, width)]
    right = op.Sub(op.Mul(places[1].reshape(1, -1), sign), op.Round(op.Mul(drawn["right"], float(width))))
    down = op.Sub(places[0].reshape(-1, 1), op.Round(op.Mul(drawn["down"], float(height))))
    x = op.Add(op.Mul(right, cosine), op.Mul(down, sine))
    y = op.Sub(op.Mul(down, cosine), op.Mul(right, sine))
    sides = [max(size - end, 1) for size in (width, height)]
    halves = [op.Unsqueeze(op.Mul(along, 2 / side), [0, 3]) for along, side in zip((x, y), sides, strict=True)]
    return op.Concat(*halves, axis=3)


def blur(op: Builder, moved: ir.Value, deviation: ir.Value, images: ir.Value) -> ir.Value:
    """A Gaussian blur of 5x5 pixels without its rim, in the shape of `images`."""
    height, width = image_sizes(images)[2:]
    steps = np.arange(-RIM, RIM + 1, dtype=np.float32)
    bell = op.Exp(op.Mul(op.Div(steps * steps, op.Mul(deviation, deviation)), -0.5))
    row = op.Div(bell, op.ReduceSum(bell, [0], keepdims=1))
    kernel = op.Mul(op.Reshape(row, [1, 1, -1, 1]), row)
    planes = op.Reshape(moved, [-1, 1, height + 2 * RIM, width + 2 * RIM])
    return op.Reshape(op.Conv(planes, kernel), [-1, *image_sizes(images)[1:]], like=images)


def image_sizes(x: ir.Value) -> list[int]:
    """Sizes of [N, C, H, W]; an open size is 0."""
    return [size if isinstance(size, int) else 0 for size in dims(x)]


def refuse_other_than_images(x: ir.Value, head: Head | None, *, where: str, hint: str) -> None:
    """Raise UnsupportedError unless `x` is [N, C, H, W] with one or three channels, and each sample has one answer.

    `where` names the setting that asks for images, and `hint` the way out.
    """
    shape = dims(x)
    if x.dtype is not None and not x.dtype.is_floating_point():
        kind = x.dtype.name.lower()
        raise UnsupportedError(f"only images of floats can be augmented; `{x.name}` is {kind}", where=where, hint=hint)
    if len(shape) != 4 or shape[1] not in (1, 3):
        last = len(shape) == 4 and shape[3] in (1, 3)
        stated = ", ".join(str(size) for size in shape)
        raise UnsupportedError(
            f"only images can be augmented, [N, 1, H, W] or [N, 3, H, W]; the model takes [{stated}]",
            where=f"{where}, input `{x.name}`",
            hint=f"export the model with the channels first, or {hint}" if last else hint,
        )
    if head is not None and head.kind == "dense":
        raise UnsupportedError(
            "the model answers for each position, and the augmentation moves positions", where=where, hint=hint
        )
