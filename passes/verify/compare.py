"""Check a compile against itself before it is handed out: the same numbers by another way.

Three questions, each on real executions: does the adapted graph with adaptation off still equal the source model, do
the two halves give what the joint graph gives, and is the gradient the derivative of the loss.
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
from ttac.passes.verify.derivative import BOUND

LOGITS, HALVES, OPTIMISED = 1e-4, 1e-5, 5e-2
ROUNDING = 0.5
"""Root mean square that 8 bits may change logits by, relative to how much these vary: more is no longer the model."""
FLIPS = 5e-2
"""What takes the place of the bound on logits where a last digit may decide how a value is rounded."""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Largest relative differences found, each against the largest magnitude of its reference; None: not applicable.

    Attributes:
        logits_off: logits with adaptation off, against the source model.
        logits_halves: logits of the forward graph, against the joint graph.
        gradients_halves: gradients of the backward graph, against the joint graph.
        logits_optimised: logits of the forward graph as the engine optimises it, against the same as it is written.
        derivative: the loss along one random direction by central differences, against the gradients.
        quantized: logits of the 8-bit graph against the source model, by root mean square.
        residuals: gradients from residuals that are kept with an error, against exact ones, by root mean square.
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
            # Optimised, 8-bit layers round once where the graph as written rounds twice; statistics of a few samples
            # make a fifth of the largest logit of that on a net of random weights: reported, but no sign of a fault.
            bounds |= {"logits_off": FLIPS, "logits_optimised": math.inf}
        for name, bound in bounds.items():
            value = getattr(self, name)
            if value is not None and not (value <= bound and math.isfinite(value)):
                raise VerificationError(
                    f"verification failed: {name.replace('_', ' ')} differ by {value:.2e}, allowed {bound:.0e}",
                    hint="please report this model; `--dump DIR` writes the graph after every room",
                )


def relative(found: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference over the largest magnitude of `reference`."""
    scale = max(float(np.max(np.abs(reference), initial=0.0)), 1e-12)
    return float(np.max(np.abs(found - reference), initial=0.0)) / scale


def check_files(folder: Path, graphs: Sequence[str]) -> None:
    """Run onnx's checker on the written graphs; raises VerificationError with its message."""
    for graph in graphs:
        _check_file(folder / f"{graph}.onnx")


def _check_file(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise VerificationError(f"`{path.name}` is not valid ONNX: {error}") from error


def logits_off(source: ir.Model, off: ir.Model, feeds: Mapping[str, np.ndarray], logits: str) -> float:
    """The rewritten graph with source statistics and initial parameters, against the model that was loaded.

    That one is run on as many samples at a time as its file asks for.
    """
    return relative(run(off, feeds)[logits], _plain(source, feeds[str(source.graph.inputs[0].name)]))


def _plain(source: ir.Model, samples: np.ndarray) -> np.ndarray:
    """The output of the model as it was loaded, for samples of any number."""
    stated = source.graph.inputs[0].shape[0] if source.graph.inputs[0].shape else None
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {"source": source})
        plain = Executable(Path(folder) / "source.onnx")
        return rows(plain, source, samples, stated if isinstance(stated, int) and stated > 0 else len(samples))


def quantization_error(source: ir.Model, quantized: ir.Model, samples: np.ndarray, logits: str) -> float:
    """Root mean square of the change of the logits, over their standard deviation on `samples` [n, ...]."""
    expected = _plain(source, samples).astype(np.float64)
    found = run(quantized, {str(quantized.graph.inputs[0].name): samples})[logits]
    spread = max(float(expected.std()), 1e-12)
    return float(np.sqrt(np.mean((found - expected) ** 2))) / spread


class Halves:
    """The written forward graph and the stages of the backward, loaded once for all questions about them.

    Without `optimised`, the engine executes the graphs as written.  `moves` maps outputs of the forward to the state
    that they replace: as in a step, the backward is fed the state after the forward.
    """

    def __init__(
        self, folder: Path, stages: Sequence[str], moves: Mapping[str, str], *, optimised: bool = True
    ) -> None:
        self.folder, self.stages, self.moves = folder, stages, moves
        self.forward = Executable(folder / "forward.onnx", optimised=optimised)
        self.backward = [Executable(folder / f"{stage}.onnx", optimised=optimised) for stage in stages]
        self._last: tuple[Mapping[str, np.ndarray], dict[str, np.ndarray]] | None = None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of all by name; asked again for the very same mapping, it does not compute again."""
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
    halves: Halves,
    feeds: Mapping[str, np.ndarray],
    logits: str,
    gradients: Sequence[str],
    steps: int = 1,
) -> tuple[float, float]:
    """Return the largest differences of logits and of gradients between the joint graph and the two halves.

    The comparison runs `steps` times, each time from the state that the forward moved.  The engine executes all graphs
    as written.  Optimised differently, a last digit may decide on which side of a Relu a value is.  The engine's
    optimiser would also take a third of the whole compile for a joint graph of thousands of nodes.
    """
    worst = np.zeros(2)
    for _ in range(steps):
        expected, outputs = run(joint, feeds, optimised=False), halves.run(feeds)
        logits_error = relative(outputs[logits], expected[logits])
        gradients_error = relative(_joined(outputs, gradients), _joined(expected, gradients))
        worst = np.maximum(worst, (logits_error, gradients_error))
        feeds = halves.after_forward(feeds, outputs) if steps > 1 else feeds
    return float(worst[0]), float(worst[1])


def residual_error(halves: Halves, exact: Halves, feeds: Mapping[str, np.ndarray], gradients: Sequence[str]) -> float:
    """Length of the difference between the gradients of `halves` and of `exact`, over the length of the latter."""
    expected = _joined(exact.run(feeds), gradients).astype(np.float64)
    found = _joined(halves.run(feeds), gradients)
    return float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-12))


def _joined(values: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return np.concatenate([values[name].reshape(-1) for name in names])
