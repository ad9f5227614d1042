"""Compare the written graphs with the source model and the joint graph, by real executions.

Three questions.  Does the adapted graph with adaptation off equal the source model?  Do the two halves give the outputs
of the joint graph?  Is the gradient the derivative of the loss?
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from ttac.errors import VerificationError
from ttac.passes.graph.execute import Executable, rows, run
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.sample_set import SampleSet
from ttac.passes.load.input_axes import axes_of
from ttac.passes.verify.derivative import BOUND

LOGITS, HALVES, OPTIMISED = 1e-4, 1e-5, 5e-2
"""Bounds on relative differences: adaptation off, halves against the joint graph, and the effect of optimisation."""
ROUNDING = 0.5
"""Bound on the root mean square change of the logits by 8 bits, relative to their standard deviation."""
FLIPS = 5e-2
"""Bound in place of `LOGITS` for an 8-bit graph, where a last digit decides the rounding of a value."""


LIKELY = 1e-2
"""Least probability to which the difference of probabilities is relative."""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Relative differences between two ways to compute the same numbers; None if a comparison does not apply.

    A difference is the largest one, over the largest magnitude of its reference, unless the attribute says otherwise.

    Attributes:
        logits_off: logits with adaptation off, against the source model.
        logits_halves: logits of the forward graph, against the joint graph.
        gradients_halves: gradients of the backward graph, against the joint graph.
        logits_optimised: logits of the forward graph optimised by the engine, against those of the unoptimised graph.
        derivative: finite differences of the loss along one direction, against the gradients.
        quantized: root mean square of the change of the logits by 8 bits, over their standard deviation.
        residuals: gradients from inexact residuals, against those from dense ones, by root mean square.
    """

    logits_off: float
    logits_halves: float | None = None
    gradients_halves: float | None = None
    logits_optimised: float | None = None
    derivative: float | None = None
    quantized: float | None = None
    residuals: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """The differences by name."""
        return asdict(self)

    def refuse(self) -> None:
        """Raise VerificationError if a difference is above its bound, or not a number."""
        bounds = {"logits_off": LOGITS, "logits_halves": HALVES, "gradients_halves": HALVES}
        bounds |= {"logits_optimised": OPTIMISED, "derivative": BOUND, "quantized": ROUNDING, "residuals": math.inf}
        if self.quantized is not None:
            # An optimised 8-bit layer rounds once where the written graph rounds twice.  On a net of random weights,
            # statistics of a few samples amplify this difference to a fifth of the largest logit.  This is no fault.
            bounds |= {"logits_off": FLIPS, "logits_optimised": math.inf}
        for name, bound in bounds.items():
            value = getattr(self, name)
            if value is not None and math.isnan(value):
                raise VerificationError(
                    f"the {name.replace('_', ' ')} are not numbers: a value of the network is infinite or NaN",
                    hint="look for infinite constants, such as a mask of -inf: use -1e4, or a method without a loss",
                )
            if value is not None and not (value <= bound and math.isfinite(value)):
                raise VerificationError(
                    f"verification failed: {name.replace('_', ' ')} differ by {value:.2e}, allowed {bound:.0e}",
                    hint="please report this model; `--dump DIR` writes the graph after every room",
                )


def relative(actual: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference over the largest finite magnitude of `reference`; equal infinities do not differ."""
    finite = np.abs(reference[np.isfinite(reference)])
    scale = max(float(np.max(finite, initial=0.0)), 1e-12)
    with np.errstate(invalid="ignore"):
        apart = np.where(actual == reference, 0.0, np.abs(actual - reference))
    return float(np.max(apart, initial=0.0)) / scale


def relative_outputs(actual: np.ndarray, reference: np.ndarray) -> float:
    """The same for outputs of a model; probabilities of a millionth are compared as if the largest were `LIKELY`.

    Engines compute a Sigmoid to an absolute error of about 1e-7.
    """
    are_probabilities = bool(np.min(reference, initial=0.0) >= 0 and np.max(reference, initial=0.0) <= 1)
    scale = LIKELY / max(float(np.max(reference, initial=0.0)), 1e-12) if are_probabilities else 1.0
    return relative(actual, reference) / max(scale, 1.0)


def check_files(folder: Path, graphs: Sequence[str]) -> None:
    """Run onnx's checker on the written graphs; raise VerificationError with the message of the checker."""
    for graph in graphs:
        _check_file(folder / f"{graph}.onnx")


def _check_file(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise VerificationError(f"`{path.name}` is not valid ONNX: {error}") from error


def logits_off(source: ir.Model, off: ir.Model, feeds: Mapping[str, np.ndarray], axes: Mapping[str, int]) -> float:
    """The outputs of the rewritten graph with source statistics and initial parameters, against the loaded model.

    `axes` has the names of the compared outputs, and the axis of each with the samples.  The loaded model runs on as
    many samples at a time as its file asks for.
    """
    inputs = axes_of(source)
    samples = SampleSet({name: feeds[name] for name in inputs}, inputs)
    expected, actual = source_outputs(source, samples, axes), run(off, feeds, list(axes))
    return max((relative_outputs(actual[name], expected[name]) for name in axes), default=0.0)


def source_outputs(source: ir.Model, samples: SampleSet, axes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The outputs in `axes` of the model as it was loaded, for samples of any number."""
    x = source.graph.inputs[0]
    stated = x.shape[axes_of(source)[str(x.name)] or 0] if x.shape else None
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {"source": source})
        plain = Executable(Path(folder) / "source.onnx")
        batch = stated if isinstance(stated, int) and stated > 0 else len(samples)
        return rows(plain, samples, batch, axes)


def quantization_error(source: ir.Model, quantized: ir.Model, samples: SampleSet, logits: str, axis: int) -> float:
    """Root mean square of the change of the logits, over their standard deviation on the `samples`.

    `axis` is that of the samples in the logits.
    """
    expected = source_outputs(source, samples, {logits: axis})[logits].astype(np.float64)
    actual = run(quantized, samples.arrays, [logits])[logits]
    spread = max(float(expected.std()), 1e-12)
    return float(np.sqrt(np.mean((actual - expected) ** 2))) / spread


class ExecutableHalves:
    """The written forward graph and the stages of the backward, each loaded once.

    Without `optimised`, the engine executes the graphs unchanged.  `moves` maps outputs of the forward to the state
    that they replace.  As in a step, the backward reads the state after the forward.
    """

    def __init__(
        self, folder: Path, stages: Sequence[str], moves: Mapping[str, str], *, optimised: bool = True
    ) -> None:
        self.folder, self.stages, self.moves = folder, stages, moves
        self.forward = Executable(folder / "forward.onnx", optimised=optimised)
        self.backward = [Executable(folder / f"{stage}.onnx", optimised=optimised) for stage in stages]
        self._last: tuple[Mapping[str, np.ndarray], dict[str, np.ndarray]] | None = None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs of all graphs by name; a second call with the same mapping computes nothing again."""
        if self._last is not None and self._last[0] is feeds:
            return self._last[1]
        outputs = self.forward(feeds)
        after_forward = self.after_forward(feeds, outputs)
        for stage in self.backward:
            outputs |= stage({**after_forward, **outputs})
        self._last = (feeds, outputs)
        return outputs

    def after_forward(
        self, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return `feeds` with the state that the forward's `outputs` replace."""
        return {**feeds, **{state: outputs[output] for output, state in self.moves.items()}}


def compare_halves(
    joint: ir.Model,
    halves: ExecutableHalves,
    feeds: Mapping[str, np.ndarray],
    logits: str,
    gradients: Sequence[str],
    steps: int = 1,
) -> tuple[float, float]:
    """Return the largest differences of logits and of gradients between the joint graph and the two halves.

    The comparison runs `steps` times, each time from the state that the forward moved.  The engine executes all graphs
    unoptimised: optimisation changes last digits, which may move a value to the other side of a Relu.  The optimiser
    would also take a third of the whole compile for a joint graph of thousands of nodes.
    """
    worst = np.zeros(2)
    for _ in range(steps):
        expected, outputs = run(joint, feeds, optimised=False), halves.run(feeds)
        logits_error = relative_outputs(outputs[logits], expected[logits])
        gradients_error = relative(_joined(outputs, gradients), _joined(expected, gradients))
        worst = np.maximum(worst, (logits_error, gradients_error))
        feeds = halves.after_forward(feeds, outputs) if steps > 1 else feeds
    return float(worst[0]), float(worst[1])


def residual_error(
    halves: ExecutableHalves, exact: ExecutableHalves, feeds: Mapping[str, np.ndarray], gradients: Sequence[str]
) -> float:
    """Length of the difference between the gradients of `halves` and `exact`, over the length of those of `exact`."""
    expected = _joined(exact.run(feeds), gradients).astype(np.float64)
    actual = _joined(halves.run(feeds), gradients)
    return float(np.linalg.norm(actual - expected) / max(float(np.linalg.norm(expected)), 1e-12))


def _joined(values: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return np.concatenate([values[name].reshape(-1) for name in names])
