"""Fisher information: the diagonal on calibration data says how much the source needs each parameter at its value.

Niu et al. (arXiv:2204.02610, eq. 9) with the most likely class as label.  As in the official code, the square is that
of the gradient of a batch's mean loss, averaged over batches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.joint import differentiate_loss
from ttac.passes.differentiate.losses import Loss, mean
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import Executable
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.lower.lower import lower
from ttac.passes.step_graphs.context import Subject

BATCH = 64
"""Samples whose loss is averaged before the square, as in the paper."""


def fisher_information(subject: Subject) -> dict[str, np.ndarray]:
    """Fisher information by parameter, in its shape; empty without calibration data or with `fisher=0`.

    With a dense head the gradients are those of planned batches: a sample has enough positions, and a batch as in the
    paper would need many times the memory of a step.  A rest of the samples counts as a batch.
    """
    samples, head = subject.samples, subject.head
    if not subject.settings["fisher"] or samples is None or head is None:
        return {}
    batch = min(subject.batch, BATCH) if head.kind == "dense" else BATCH
    copy = subject.model.clone()
    values = {str(value.name): value for value in copy.graph.inputs}
    parameters = tuple(replace(p, value=values[p.name]) for p in subject.adaptation.parameters)
    joint = differentiate_loss(copy, copy.graph.outputs[0], pseudo_label, parameters, head)
    copy.graph.outputs[:] = list(joint.gradients)
    names = {p.name: str(gradient.name) for p, gradient in zip(joint.parameters, joint.gradients, strict=True)}
    state = {tensor.name: tensor.initial for tensor in subject.adaptation.state}
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {"fisher": lower(copy, subject.target)})
        run = Executable(Path(folder) / "fisher.onnx")
        information = _averaged(run, state, names, list(samples.batches(batch)))
    subject.say(f"{len(information)} tensors held to the source by their Fisher information")
    return information


def pseudo_label(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """Mean over all positions of the cross-entropy to the likeliest answer, -max_c ln p_c.

    With a binary head, -max(ln s, ln(1 - s)) = log(1 + e^-|x|), averaged over the answers.
    """
    if head.binary:
        each = op.Softplus(op.Neg(op.Abs(scores)))
    else:
        each = op.Neg(op.ReduceMax(op.LogSoftmax(scores, axis=head.axis), [head.axis or 0], keepdims=0))
    return Loss(scalar=mean(op, each, "pseudo.label"), stats={}, head=head)


def _averaged(
    run: Executable,
    state: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    batches: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """The mean over the batches of the squared gradients, by parameter."""
    totals: dict[str, np.ndarray] = {}
    for part in batches:
        outputs = run({**state, **part})
        for parameter, gradient in names.items():
            totals[parameter] = totals.get(parameter, 0.0) + outputs[gradient].astype(np.float64) ** 2
    return {parameter: (total / len(batches)).astype(np.float32) for parameter, total in totals.items()}
