"""The hooks of a method on the model at hand: its defaults, checks, constants and graphs."""

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
from ttac.passes.graph.state import StateTensor
from ttac.passes.norms.norm_sites import NormSite
from ttac.passes.plan.keep_ratios import Layer
from ttac.passes.step_graphs.context import Context, MethodGraph, Subject
from ttac.samples.images import preparation
from ttac.sites import Samples
from ttac.spec import Facts, function_of


def head_of(asked: CompileOptions, model: ir.Model) -> Head | None:
    """The reading of the normal form's output; None if it is unclear and the method needs none.

    Raises UnsupportedError if the method, or the user, needs the reading.
    """
    output = model.graph.outputs[0]
    if asked.method.loss or asked.method.refine or asked.head != "auto":
        return decide_head(output, asked.head)
    try:
        return decide_head(output)
    except UnsupportedError:
        return None


def subject_of(
    asked: CompileOptions,
    model: ir.Model,
    head: Head | None,
    sites: Sequence[NormSite],
    samples: Samples,
    say: Callable[[str], None],
) -> Subject:
    """The model that the method's hooks see."""
    return Subject(
        model=model,
        head=head,
        sites=sites,
        settings=asked.settings,
        batch=asked.batch,
        target=asked.target,
        samples=samples.array,
        say=say,
    )


def settled(asked: CompileOptions, subject: Subject) -> tuple[CompileOptions, Subject]:
    """The request and the subject with the defaults that depend on the model, and with the sites that train.

    Raises UnsupportedError or UsageError if the model takes no images such as `--pixels` states, or the method refuses
    the model or the samples.
    """
    kinds = frozenset(site.kind for site in subject.sites)
    facts = Facts(asked.batch, subject.head.classes if subject.head else 1, kinds)
    asked = replace(asked, settings=asked.method.settle(asked.settings, facts))
    subject = replace(subject, settings=asked.settings)
    if asked.pixels:
        preparation(["N", *dims(subject.model.graph.inputs[0])[1:]], asked.pixels)
    if asked.method.check:
        function_of(asked.method.check)(subject)
    if asked.method.choose_trained and asked.train == "norms":
        subject = replace(subject, sites=_trained(subject, function_of(asked.method.choose_trained)(subject)))
    return asked, subject


def _trained(subject: Subject, names: frozenset[str]) -> list[NormSite]:
    """The sites, of which those in `names` train."""
    left = sorted(site.name for site in subject.sites if site.name not in names)
    if left:
        subject.say(f"{len(left)} norms stay untrained: {', '.join(left)}")
    return [replace(site, trained=site.trained and site.name in names) for site in subject.sites]


def refine(asked: CompileOptions, subject: Subject) -> Adaptation:
    """Rewrite the adapted model by the method's hook, in place; the adaptation with the new state."""
    adaptation = subject.adaptation
    if not asked.method.refine:
        return adaptation
    state: Sequence[StateTensor] = function_of(asked.method.refine)(subject)
    parameters = [tensor for tensor in state if tensor.role == "parameter"]
    tracked = [tensor for tensor in state if tensor.role != "parameter"]
    return replace(
        adaptation,
        parameters=(*adaptation.parameters, *parameters),
        tracked=(*adaptation.tracked, *tracked),
    )


def constants_of(asked: CompileOptions, subject: Subject) -> Mapping[str, np.ndarray]:
    """The arrays that the method computes once, while compiling."""
    constants: Mapping[str, np.ndarray] = {}
    if asked.method.constants:
        constants = function_of(asked.method.constants)(subject)
    return constants


def method_graphs(
    asked: CompileOptions, joint: Joint, constants: Mapping[str, np.ndarray], layers: Sequence[Layer] = ()
) -> dict[str, MethodGraph]:
    """The method's graphs by name, in addition to forward and backward."""
    assert joint.loss is not None
    scores = joint.loss.scores or joint.logits
    context = Context(
        parameters=joint.parameters,
        gradients=[str(value.name) for value in joint.gradients],
        logits=str(scores.name),
        head=joint.loss.head,
        settings=asked.settings,
        opset=joint.model.opset_imports[""],
        constants=constants,
        layers=layers,
        x=joint.model.graph.inputs[0],
        batch=asked.batch,
    )
    graphs = {name: function_of(reference)(context) for name, reference in asked.method.graphs.items()}
    more = {f"{name}-{i}": other for name, graph in graphs.items() for i, other in enumerate(graph.more, 1)}
    return {**graphs, **more}
