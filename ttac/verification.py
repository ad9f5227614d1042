"""The verify room: real executions of the written graphs, compared with the source model and the joint graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ttac.bundle_writer import Compiled
from ttac.passes.adapt.adapt_norms import adapt_norms, without_adaptation
from ttac.passes.differentiate.joint import Joint
from ttac.passes.differentiate.losses import WEIGHTS
from ttac.passes.differentiate.reverse_walk import nodes_between
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.lower.lower import lower
from ttac.passes.quantize.float_layers import refuse_float_layers
from ttac.passes.verify.compare import (
    Differences,
    Halves,
    check_files,
    compare_halves,
    logits_off,
    quantization_error,
    relative,
    residual_error,
    slope_error,
)
from ttac.passes.verify.references import even_weights, joint_reference, loss_feeds, loss_of_scores
from ttac.program_writer import stages_of
from ttac.sites import Samples

Arrays = Mapping[str, np.ndarray]

SAMPLES = 32
"""Number of calibration samples on which the logits of an 8-bit bundle are compared."""
STATE_STEPS = 3
"""Number of steps that are compared where the loss depends on state that the forward moves."""
ELEMENTS = 8
"""Least number of elements of a channel for batch statistics; the verification runs on as few samples as it can."""


def verify(compiled: Compiled, source: ir.Model, joint: Joint, samples: Samples, folder: Path) -> Differences:
    """Return the differences of the bundle in `folder` from the source model and from the joint graph.

    Raises VerificationError for a file that is no valid ONNX, or for an 8-bit layer that the engine runs in float32.
    """
    check_files(folder, list(compiled.graphs))
    is_quantized = bool(compiled.quantized and compiled.quantized.modules)
    if compiled.quantized and is_quantized:
        refuse_float_layers(folder / "forward.onnx", compiled.quantized.modules)
    feeds = verification_feeds(compiled, joint, samples)
    reference = compiled.graphs["infer"] if is_quantized else source
    model, initial = adaptation_off(compiled)
    differences = Differences(
        logits_off=logits_off(reference, model, {**initial, **feeds}, compiled.logits),
        quantized=rounding_error(compiled, source, samples) if is_quantized else None,
    )
    return compare_gradients(compiled, joint, feeds, folder, differences) if joint.gradients else differences


def verification_feeds(compiled: Compiled, joint: Joint, samples: Samples) -> dict[str, np.ndarray]:
    """The inputs of all graphs by name: initial state, fed weights, inputs of the loss, and a few samples."""
    x = compiled.graphs["infer"].graph.inputs[0]
    count = max([2, *(-(-ELEMENTS // site.spatial) for site in compiled.sites)])
    initial = {tensor.name: tensor.initial for tensor in compiled.state}
    of_loss = loss_feeds(joint, even_weights(joint, count))
    return {**initial, **compiled.fed, **of_loss, str(x.name): samples.few(count, x)}


def adaptation_off(compiled: Compiled) -> tuple[ir.Model, Arrays]:
    """The source model with adaptive norms that use the source's statistics, and the initial state of those norms."""
    model = compiled.graphs["infer"].clone()
    nodes = {str(node.name): node for node in model.graph}
    sites = [replace(site, node=nodes[str(site.node.name)]) for site in compiled.sites]
    statistics, settings = without_adaptation(compiled.statistics, compiled.request.settings)
    adaptation = adapt_norms(model, sites, statistics, settings, trains=bool(compiled.request.method.trains))
    return lower(model, compiled.request.target), {tensor.name: tensor.initial for tensor in adaptation.state}


def rounding_error(compiled: Compiled, source: ir.Model, samples: Samples) -> float:
    """Distance that 8 bits move the logits of calibration samples, or of random samples without calibration."""
    infer = compiled.graphs["infer"]
    data = samples.few(SAMPLES, infer.graph.inputs[0]) if samples.array is None else samples.array[:SAMPLES]
    return quantization_error(source, infer, data, compiled.logits)


def compare_gradients(
    compiled: Compiled, joint: Joint, feeds: Arrays, folder: Path, differences: Differences
) -> Differences:
    """Add the differences between the written halves and the joint graph to `differences`."""
    written = Halves(folder, stages_of(compiled, "backward"), compiled.moves["forward"])
    steps = STATE_STEPS if reads_moved_state(compiled, joint) else 1
    gradients = [str(value.name) for value in joint.gradients]
    whole = joint_reference(joint, compiled.request.target)
    with exact_halves(compiled, written) as halves:
        plain = Halves(halves.folder, halves.stages, halves.moves, optimised=False)
        logits_error, gradients_error = compare_halves(whole, plain, feeds, compiled.logits, gradients, steps)
        return replace(
            differences,
            logits_halves=logits_error,
            gradients_halves=gradients_error,
            logits_optimised=relative(halves.run(feeds)[compiled.logits], plain.run(feeds)[compiled.logits]),
            # A rounded loss is a staircase: it has no derivative to compare with.
            slope=derivative_error(joint, halves, feeds) if differences.quantized is None else None,
            residuals=None if halves is written else residual_error(written, halves, feeds, gradients),
        )


@contextmanager
def exact_halves(compiled: Compiled, written: Halves) -> Iterator[Halves]:
    """The halves with dense residuals: the `written` halves, or copies in a temporary folder."""
    if not compiled.exact:
        yield written
        return
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), compiled.exact)
        yield Halves(Path(folder), [name for name in compiled.exact if name != "forward"], written.moves)


def reads_moved_state(compiled: Compiled, joint: Joint) -> bool:
    """Whether the loss depends on state that the forward moves: then the gradients differ from step to step."""
    moved = set(compiled.moves["forward"].values())
    inputs = [value for value in joint.model.graph.inputs if value.name in moved]
    return joint.loss is not None and bool(nodes_between(joint.model.graph, inputs, joint.loss.scalar))


def derivative_error(joint: Joint, halves: Halves, feeds: Arrays) -> float:
    """Difference between the gradients of `halves` and central differences of the loss."""
    loss, of_scores = joint.loss, None
    assert loss is not None
    value = loss.samples or loss.scalar
    if loss.fed and loss.scores is not None:
        value, of_scores = loss.scores, loss_of_scores(joint, feeds)
    parameters = [tensor.name for tensor in joint.parameters]
    gradients = [str(gradient.name) for gradient in joint.gradients]
    weights = feeds[WEIGHTS]
    return slope_error(halves, feeds, str(value.name), parameters, gradients, weights, of_scores)
