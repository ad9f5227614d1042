"""The rotation head of TTT (Sun et al., arXiv:1909.13231): its recognition, and the loss on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError, UsageError
from ttac.passes.differentiate.heads import Head, scores_of
from ttac.passes.differentiate.losses import Loss, entropies, labelled, mean
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import run
from ttac.passes.graph.sample_set import SampleSet
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor
from ttac.passes.step_graphs.augmentation import image_sizes
from ttac.passes.step_graphs.context import Context, MethodGraph, Subject, finished, new_graph, read
from ttac.passes.step_graphs.linear_head import class_head
from ttac.passes.step_graphs.pixel_range import check_images

ROOM = "refine"
SCORES, LABELS, TURNS = "rotation.scores", "rotation.labels", 4
CHECKED = 64
"""Most calibration images that check the rotation head."""
LEAST = 0.5
"""Least fraction of turned calibration images whose turn the head must recognise; chance is 0.25."""
TRAIN = (
    "train a second output jointly (docs/methods.md#ttt), or take `--method tent`; `ttac inspect` lists the methods "
    "that fit"
)


def check(subject: Subject) -> None:
    """Raise UnsupportedError unless the model takes square images, predicts one class and recognises turns."""
    class_head(subject, "`ttt` predicts one class")
    check_images(
        subject, where="`--method ttt`", hint="take `--method tent`; `ttac inspect` lists the methods that fit"
    )
    x = subject.model.graph.inputs[0]
    height, width = image_sizes(x)[2:]
    if height != width or not height:
        raise UnsupportedError(
            f"`ttt` turns images by 90 degrees, and an image has {height or 'open'}x{width or 'open'} pixels",
            where=f"input `{x.name}`",
            hint="state square images, `--shape`, or take `--method tent`",
        )
    output = rotation_output(subject.model, subject.settings)
    if subject.samples is None:
        subject.say(f"turns come from the output `{output.name}`; `--calibration` checks that it recognises turns")
        return
    share = recognised(subject.model, output, subject.samples.first(CHECKED))
    subject.say(f"the output `{output.name}` recognises {share:.0%} of the turns of calibration images")
    if share < LEAST:
        raise UnsupportedError(
            f"the output recognises {share:.0%} of the turns of calibration images, and chance is 25%",
            where=f"output `{output.name}`",
            hint=TRAIN,
        )


def rotation_output(model: ir.Model, settings: Mapping[str, Any]) -> ir.Value:
    """The output with the scores of the turns [N, 4]: settings["rotation"], or the only output but the first.

    Raises UsageError for a name that fits no output or several outputs that fit, UnsupportedError if none fits.
    """
    others = [value for value in model.graph.outputs[1:] if value.dtype == ir.DataType.FLOAT]
    fitting = [value for value in others if len(dims(value)) == 2 and dims(value)[1] == TURNS]
    names = ", ".join(f"`{value.name}`" for value in fitting)
    if name := str(settings["rotation"]):
        chosen = [value for value in fitting if value.name == name]
        if not chosen:
            raise UsageError(
                f"no second output `{name}` has the shape [N, 4]",
                where=f"`--set rotation={name}`",
                hint=f"outputs that fit: {names or 'none'}",
            )
        return chosen[0]
    if not fitting:
        raise UnsupportedError("the model has no second output [N, 4] that recognises turns", hint=TRAIN)
    if len(fitting) > 1:
        raise UsageError(
            "several outputs could recognise turns",
            where=names,
            hint=f"name the one, perhaps `--set rotation={fitting[0].name}`",
        )
    return fitting[0]


def recognised(model: ir.Model, output: ir.Value, samples: SampleSet) -> float:
    """The fraction of the samples, each turned by 0, 90, 180 and 270 degrees, whose turn has the largest score."""
    x, name = str(model.graph.inputs[0].name), str(output.name)
    right = []
    for turn in range(TURNS):
        turned = np.ascontiguousarray(np.rot90(samples.main, turn, (2, 3)))
        right.append(run(model, {**samples.arrays, x: turned}, [name])[name].argmax(1) == turn)
    return float(np.mean(right))


def with_rotation(subject: Subject) -> list[StateTensor]:
    """Name the scores of the turns `rotation.scores` in the model's graph, in place; there is no new state."""
    op = Builder(subject.model.graph, ROOM, subject.model.opset_imports[""])
    with op.at("rotation"):
        op.Identity(scores_of(op, rotation_output(subject.model, subject.settings))).name = SCORES
    return []


def rotation_loss(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """mean_i CE(label_i, p_i) with p of the turns' scores; `rotation.labels` [N, 4] holds ones and zeros."""
    turns = next(value for node in op.graph for value in node.outputs if value.name == SCORES)
    each, labels = labelled(op, turns, LABELS)
    plain = mean(op, entropies(op, scores, head), "entropy")
    upright = op.Slice(op.Softmax(turns, axis=1), [0], [1], [1])
    stats = {"entropy": plain, "upright": mean(op, upright, "upright")}
    return Loss(scalar=mean(op, each, "rotation.loss"), stats=stats, head=head, scores=scores, other_inputs=(labels,))


def doubt(context: Context) -> MethodGraph:
    """`unsure` is 1 if the mean probability of the turn 0 is at most settings["threshold"], else 0."""
    op = new_graph("doubt", context.opset)
    upright = read(op, "upright", ())
    limit = float(context.settings["threshold"]) + 1e-3  # the code adds this for rounding
    return finished(op, {"unsure": op.Cast(op.Less(upright, limit), to=int(ir.DataType.FLOAT))})
