"""The verify room: real executions of the written graphs, compared with the source model and the joint graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ttac.bundle_content import BundleContent
from ttac.passes.adapt.adapt_norms import adapt_norms, without_adaptation
from ttac.passes.differentiate.joint import Joint
from ttac.passes.differentiate.reverse_walk import nodes_between
from ttac.passes.graph.execute import Executable, batch_axes
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.lower.lower import lower
from ttac.passes.norms.norm_sites import bind_sites
from ttac.passes.quantize.float_layers import refuse_float_layers
from ttac.passes.verify.compare import (
    Differences,
    ExecutableHalves,
    check_files,
    compare_halves,
    logits_off,
    quantization_error,
    relative_outputs,
    residual_error,
)
from ttac.passes.verify.derivative import Forward, derivative_error
from ttac.passes.verify.float64 import float64_of
from ttac.passes.verify.references import (
    detached_values,
    even_weights,
    joint_reference,
    loss_feeds,
    loss_of_scores,
    scores_model,
)
from ttac.spec import Target

Arrays = Mapping[str, np.ndarray]

SAMPLES = 32
"""Number of calibration samples on which the logits of an 8-bit bundle are compared."""
STATE_STEPS = 3
"""Number of steps that are compared where the loss depends on state that the forward moves."""
ELEMENTS = 8
"""Least number of elements of a channel for batch statistics; the verification runs on as few samples as it can."""


def verify(content: BundleContent, folder: Path) -> Differences:
    """Return the differences of the bundle in `folder` from the source model and from the joint graph.

    Raises VerificationError for a file that is no valid ONNX, or for an 8-bit layer that the engine runs in float32.
    """
    modules = content.state.int8.modules
    check_files(folder, list(content.graphs))
    if modules:
        refuse_float_layers(folder / "forward.onnx", modules)
    feeds = verification_feeds(content)
    reference = content.graphs["infer"] if modules else content.state.source
    model, initial = adaptation_off(content.fixed or content)
    differences = Differences(
        logits_off=logits_off(reference, model, {**initial, **feeds}, batch_axes(content.graphs["infer"])),
        quantized=rounding_error(content) if modules else None,
    )
    return compare_gradients(content, feeds, folder, differences) if content.joint.gradients else differences


def verification_feeds(content: BundleContent) -> dict[str, np.ndarray]:
    """The inputs of all graphs by name: initial state, fed weights, inputs of the loss, and a few samples."""
    count = max([2, *(-(-ELEMENTS // site.spatial) for site in content.state.sites)])
    count = 1 if content.state.single else count
    initial = {tensor.name: tensor.initial for tensor in content.tensors}
    samples = content.state.samples.few(count, content.inputs)
    of_loss = loss_feeds(content.joint, even_weights(content.joint, count))
    return {**initial, **content.fed_weights, **of_loss, **samples.arrays}


def adaptation_off(content: BundleContent) -> tuple[ir.Model, Arrays]:
    """The source model with adaptive norms that use the source's statistics, and the initial state of those norms."""
    options, model = content.state.options, content.graphs["infer"].clone()
    sites = bind_sites(content.state.sites, model)
    statistics, settings = without_adaptation(content.state.adaptation.statistics, options.settings)
    adaptation = adapt_norms(model, sites, statistics, settings, trains=options.method.trains)
    return lower(model, options.target), {tensor.name: tensor.initial for tensor in adaptation.state}


def rounding_error(content: BundleContent) -> float:
    """Distance that 8 bits move the logits of calibration samples, or of random samples without calibration."""
    infer, samples = content.graphs["infer"], content.state.samples
    data = samples.few(SAMPLES, content.inputs) if samples.known is None else samples.known.first(SAMPLES)
    axes = batch_axes(infer)
    return quantization_error(content.state.source, infer, data, content.output, axes[content.output])


def compare_gradients(content: BundleContent, feeds: Arrays, folder: Path, differences: Differences) -> Differences:
    """Add the differences between the written halves and the joint graph to `differences`."""
    joint, logits = content.joint, content.logits
    written = ExecutableHalves(folder, content.stages("backward"), content.state.adaptation.moves)
    steps = STATE_STEPS if reads_moved_state(content) else 1
    gradients = [str(value.name) for value in joint.gradients]
    target = content.state.options.target
    whole = joint_reference(joint, target, open_sizes=bool(content.sizes))
    with exact_halves(content, written) as halves:
        unoptimised = ExecutableHalves(halves.folder, halves.stages, halves.moves, optimised=False)
        logits_error, gradients_error = compare_halves(whole, unoptimised, feeds, logits, gradients, steps)
        return replace(
            differences,
            logits_halves=logits_error,
            gradients_halves=gradients_error,
            logits_optimised=relative_outputs(halves.run(feeds)[logits], unoptimised.run(feeds)[logits]),
            # A rounded loss is a staircase: it has no derivative to compare with.
            derivative=difference_of_gradients(joint, halves, feeds, target) if differences.quantized is None else None,
            residuals=None if halves is written else residual_error(written, halves, feeds, gradients),
        )


@contextmanager
def exact_halves(content: BundleContent, written: ExecutableHalves) -> Iterator[ExecutableHalves]:
    """The halves with dense residuals: the `written` halves, or copies in a temporary folder."""
    if not content.exact:
        yield written
        return
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), content.exact)
        yield ExecutableHalves(Path(folder), [name for name in content.exact if name != "forward"], written.moves)


def reads_moved_state(content: BundleContent) -> bool:
    """Whether the loss depends on state that the forward moves: then the gradients differ from step to step."""
    joint, moved = content.joint, set(content.state.adaptation.moves.values())
    inputs = [value for value in joint.model.graph.inputs if value.name in moved]
    return joint.loss is not None and bool(nodes_between(joint.model.graph, inputs, joint.loss.scalar, detached=True))


def difference_of_gradients(joint: Joint, halves: ExecutableHalves, feeds: Arrays, target: Target) -> float:
    """Difference between the gradients of `halves` and finite differences of the loss."""
    names = [tensor.name for tensor in joint.parameters]
    outputs = halves.run(feeds)
    gradients = [outputs[str(gradient.name)] for gradient in joint.gradients]
    parameters = [feeds[name] for name in names]
    model = scores_model(joint, target)
    feeds = {**feeds, **detached_values(joint, feeds, target)}

    def inputs(values: Sequence[np.ndarray]) -> Arrays:
        return {**feeds, **dict(zip(names, values, strict=True))}

    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {"scores": model})
        engine = Executable(Path(folder) / "scores.onnx")

        def forward(values: Sequence[np.ndarray]) -> list[np.ndarray]:
            return list(engine(inputs([value.astype(np.float32) for value in values])).values())

        def exact_forward() -> Forward | None:
            exact = float64_of(model, feeds, forward(parameters))
            return None if exact is None else lambda values: exact(inputs(values))

        return derivative_error(parameters, gradients, forward, exact_forward, loss_of_scores(joint, feeds))
