"""Images with their patches in another order, and weights of the samples whose prediction depends on that order."""

from __future__ import annotations

import math

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.differentiate.losses import WEIGHTS, total
from ttac.passes.graph.builder import Builder
from ttac.passes.step_graphs.augmentation import image_sizes, refuse_other_than_images
from ttac.passes.step_graphs.context import Context, MethodGraph, Subject, finished, new_graph, read
from ttac.passes.step_graphs.drawn_images import drawn_images
from ttac.passes.step_graphs.linear_head import class_head
from ttac.passes.step_graphs.sample_weights import SELECTED, below, margin, read_entropies

SHUFFLED, SCORES, SEED = "shuffled", "shuffled.scores", "shuffle.seed"
WHERE = "`--method deyo`"


def check(subject: Subject) -> None:
    """Raise UnsupportedError unless the model takes images that divide into patches, and predicts a class of each."""
    x = subject.model.graph.inputs[0]
    refuse_other_than_images(
        x, subject.head, where=WHERE, hint="`ttac inspect` lists the methods that fit; `eata` is nearest"
    )
    class_head(subject, "`deyo` compares the likeliest class of a sample")
    patches = int(subject.settings["patches"])
    height, width = image_sizes(x)[2:]
    if height % patches or width % patches:
        fitting = [n for n in range(2, 17) if not (height % n or width % n)]
        hint = f"`--set patches={min(fitting, key=lambda n: abs(n - patches))}`" if fitting else "take `eata`"
        raise UnsupportedError(
            f"images of {height}x{width} do not divide into {patches} patches along each side", where=WHERE, hint=hint
        )


def shuffle(context: Context) -> MethodGraph:
    """`shuffled` is the model's input with the patches of each image in a random order."""
    side = int(context.settings["patches"])
    given = drawn_images(context, "shuffle", SEED, side**2)
    op = given.op
    with op.at("shuffle"):
        _, order = op.TopK(given.drawn, [side**2], axis=1)
        moved = _reordered(op, given.images, order, side)
    return finished(op, {SHUFFLED: moved}, [given.seed])


def _reordered(op: Builder, images: ir.Value, order: ir.Value, side: int) -> ir.Value:
    """`images` [n, C, H, W] with patch i, in reading order, taken from place `order`[n, i]."""
    _, channels, height, width = image_sizes(images)
    h, w = height // side, width // side
    apart = op.Transpose(op.Reshape(images, [-1, channels, side, h, side, w]), perm=[0, 2, 4, 1, 3, 5])
    patches = op.Reshape(apart, [-1, side**2, channels * h * w])
    # Rows of a GatherElements index are as wide as the patches.
    index = op.Expand(op.Unsqueeze(order, [2]), [1, 1, channels * h * w])
    moved = op.Reshape(op.GatherElements(patches, index, axis=1), [-1, side, side, channels, h, w])
    return op.Reshape(op.Transpose(moved, perm=[0, 3, 1, 4, 2, 5]), [-1, channels, height, width], like=images)


def keep_shuffled(context: Context) -> MethodGraph:
    """The scores of the shuffled images under a name that the next forward leaves alone."""
    op = new_graph("keep_shuffled", context.opset)
    return finished(op, {SCORES: op.Identity(read(op, context.logits, context.head.shape))})


def weigh_shape(context: Context) -> MethodGraph:
    """Weights (e^(E0 - H) + e^d)/n on the n samples with H < E and d > D (eq. 6 to 8), else 0.

    d is the fall of the probability of the likeliest class from the plain to the shuffled image.  E0 is `strength`, E
    `margin`, both times ln(classes), and D `shape_margin`.
    """
    op = new_graph("weigh_shape", context.opset)
    entropies = read_entropies(op, context)
    plain, shuffled = (op.Softmax(read(op, name, context.head.shape), axis=1) for name in (context.logits, SCORES))
    likeliest = op.ArgMax(plain, axis=1, keepdims=1)
    fall = op.Sub(*(op.GatherElements(p, likeliest, axis=1) for p in (plain, shuffled)))
    fall = op.Squeeze(fall, [1])
    falls = op.Cast(op.Greater(fall, float(context.settings["shape_margin"])), to=int(ir.DataType.FLOAT))
    chosen = op.Mul(below(op, entropies, margin(context)), falls)
    count = total(op, chosen)
    strength = float(context.settings["strength"]) * math.log(context.classes)
    weight = op.Add(op.Exp(op.Sub(strength, entropies)), op.Exp(fall))
    weights = op.Div(op.Mul(chosen, weight), op.Max(count, 1.0))
    return finished(op, {WEIGHTS: weights, SELECTED: count}, stats={SELECTED: "selected"})
