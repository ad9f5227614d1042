"""What a method asks of the model at hand: defaults that depend on it, its own graphs, and the anchor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.options import CompileOptions
from ttac.passes.adapt.adapt_norms import Adaptation
from ttac.passes.differentiate.heads import Head, decide_head
from ttac.passes.differentiate.joint import Joint
from ttac.passes.graph.shapes import dims
from ttac.passes.norms.norm_sites import NormSite
from ttac.passes.plan.keep_ratios import Layer
from ttac.passes.step_graphs.augmentation import (
    image_sizes,
    pixel_range,
    refuse_other_than_images,
    refuse_values_outside,
)
from ttac.passes.step_graphs.context import Context, MethodGraph
from ttac.passes.step_graphs.fisher import BATCH, fisher_information
from ttac.passes.step_graphs.laplacian import REFINEMENTS
from ttac.passes.step_graphs.table import STEPS
from ttac.samples.images import preparation
from ttac.sites import Samples
from ttac.spec import Facts


def head_of(asked: CompileOptions, model: ir.Model) -> Head | None:
    """How the output of the normal form is read; None where that is unclear and the method does not ask.

    Raises UnsupportedError where the method, or the user, needs it to be read.
    """
    output = model.graph.outputs[0]
    if asked.method.loss or asked.method.refine or asked.head != "auto":
        return decide_head(output, asked.head)
    try:
        return decide_head(output)
    except UnsupportedError:
        return None


def refine(asked: CompileOptions, model: ir.Model, head: Head | None) -> None:
    """Put what the method makes of a batch's predictions in their place, in place; most methods leave them."""
    if asked.method.refine:
        REFINEMENTS[asked.method.refine](model, head, asked.settings)


def facts_of(asked: CompileOptions, head: Head | None, sites: Sequence[NormSite]) -> Facts:
    """What the method's defaults may depend on."""
    return Facts(asked.batch, head.classes if head else 1, frozenset(site.kind for site in sites))


def settled(
    asked: CompileOptions,
    model: ir.Model,
    head: Head | None,
    sites: Sequence[NormSite],
    samples: Samples,
    say: Callable[[str], None],
) -> CompileOptions:
    """The request with the defaults that depend on the model.

    Raises UnsupportedError or UsageError where the model takes no images such as were stated, or the method distorts
    images and the model, or the calibration data, has other ones.
    """
    asked = replace(asked, settings=asked.method.settle(asked.settings, facts_of(asked, head, sites)))
    if asked.pixels:
        preparation(["N", *dims(model.graph.inputs[0])[1:]], asked.pixels)
    if "augment" in asked.method.graphs:
        x = model.graph.inputs[0]
        refuse_other_than_images(x, head)
        pixel_range(asked.settings, image_sizes(x)[1])
        say(f"pixels are taken to go from {asked.settings['black']} to {asked.settings['white']} (`black`, `white`)")
        if samples.array is not None:
            refuse_values_outside(samples.array, asked.settings)
    return asked


def anchor_of(
    asked: CompileOptions, model: ir.Model, adaptation: Adaptation, samples: Samples, head: Head | None
) -> dict[str, np.ndarray]:
    """Fisher information by parameter for a method that holds on to the source; empty without calibration data.

    With a dense head the gradients are those of planned batches: a sample has positions enough, and a batch as in the
    paper would need many times the memory of a step.
    """
    if not asked.settings.get("fisher") or samples.array is None or head is None:
        return {}
    batch = min(asked.batch, BATCH) if head.kind == "dense" else BATCH
    return fisher_information(model, adaptation, samples.array, asked.target, head, batch)


def method_graphs(
    asked: CompileOptions, joint: Joint, anchor: Mapping[str, np.ndarray], layers: Sequence[Layer] = ()
) -> dict[str, MethodGraph]:
    """The graphs of the method besides forward and backward, by name."""
    assert joint.loss is not None
    scores = joint.loss.scores or joint.logits
    context = Context(
        joint.parameters,
        [str(value.name) for value in joint.gradients],
        str(scores.name),
        joint.loss.head,
        asked.settings,
        joint.model.opset_imports[""],
        anchor,
        layers,
        joint.model.graph.inputs[0],
        asked.batch,
    )
    made = {name: STEPS[name](context) for name in asked.method.graphs}
    more = {f"{name}-{i}": graph for name, step in made.items() for i, graph in enumerate(step.more, 1)}
    return {**made, **more}
