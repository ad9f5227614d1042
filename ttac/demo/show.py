"""The comparison of `ttac demo`: errors of several methods on the shipped model and corrupted images.

The protocol is `reset-each-shift`: every corruption starts with a reset to the source model.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttac import demo
from ttac.errors import RuntimeMissingError
from ttac.methods import COMPARED
from ttac.samples.images import Stream, preparation, stream_of
from ttac.samples.streaming import run_stream

if TYPE_CHECKING:
    from ttac.runtime.adapter import Adapter

MODEL, CALIBRATION, STREAM = "fashion_resnet_bn.onnx", "fashion_calibration.npz", "fashion_stream.npz"
SAMPLE = (1, 28, 28)
BATCH = 64
CLEAN = "clean"


@dataclass(frozen=True)
class DemoErrors:
    """Errors in 0..1 by corruption and method, milliseconds per sample by method, and seconds of the whole demo."""

    errors: dict[str, dict[str, float]]
    milliseconds: dict[str, float]
    samples: int
    seconds: float

    def mean(self, method: str) -> float:
        """Return the mean error over the corruptions; clean images do not count."""
        return float(np.mean([row[method] for name, row in self.errors.items() if name != CLEAN]))

    def as_json(self) -> dict[str, Any]:
        """Return the numbers for a program."""
        return {
            "model": MODEL,
            "protocol": "reset-each-shift",
            "batch": BATCH,
            "samples": self.samples,
            "errors": {name: {m: round(e, 6) for m, e in row.items()} for name, row in self.errors.items()},
            "mean": {method: round(self.mean(method), 6) for method in COMPARED},
            "ms_per_sample": {method: round(value, 4) for method, value in self.milliseconds.items()},
            "seconds": round(self.seconds, 2),
        }


def shifts() -> dict[str, Stream]:
    """Return the shipped test images by corruption, all with the same labels."""
    how = preparation([BATCH, *SAMPLE], {"range": [0, 1]})
    with np.load(demo.file(STREAM), allow_pickle=False) as arrays:
        labels = arrays["labels"]
        images = {name: arrays[name] for name in arrays.files if name not in ("labels", "about")}
    return {name: stream_of(array, how, labels=labels, where=f"`{STREAM}`") for name, array in images.items()}


def compare(say: Callable[[str], None], moved: Callable[[int], object] = lambda samples: None) -> DemoErrors:
    """Run the demo; `say` gets a line per bundle, `moved` gets the number of samples after each batch."""
    from ttac.pipeline import compile_model
    from ttac.runtime import load

    start, streams = time.perf_counter(), shifts()
    errors: dict[str, dict[str, float]] = {name: {} for name in streams}
    milliseconds = {}
    with tempfile.TemporaryDirectory(prefix="ttac-demo-") as folder:
        for method in COMPARED:
            say(f"{MODEL} with {method}")
            output, calibration = Path(folder) / f"{method}.ttac", demo.file(CALIBRATION)
            compile_model(demo.file(MODEL), method=method, batch=BATCH, calibration=calibration, output=output)
            method_errors, milliseconds[method] = _errors(load(output), streams, moved)
            for name, error in method_errors.items():
                errors[name][method] = error
    samples = sum(stream.count for stream in streams.values())
    return DemoErrors(errors, milliseconds, samples, time.perf_counter() - start)


def _errors(
    adapter: Adapter, streams: dict[str, Stream], moved: Callable[[int], object]
) -> tuple[dict[str, float], float]:
    """Return one method's error on every shift, and its milliseconds per sample."""
    errors, seconds = {}, 0.0
    for name, stream in streams.items():
        adapter.reset()
        outcome = run_stream(adapter, stream, batch=BATCH, moved=moved)
        assert outcome.error is not None
        errors[name], seconds = outcome.error, seconds + outcome.seconds
    return errors, 1000 * seconds / sum(stream.count for stream in streams.values())


def bar(value: float, full: float, width: int, *, ascii_only: bool = False) -> str:
    """Return a bar of `width` columns at `full`, in eighths of a column; with `ascii_only`, whole columns of `#`."""
    eighths = round(8 * width * value / full) if full else 0
    if ascii_only:
        return "#" * round(eighths / 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def plot(result: DemoErrors, file: Path) -> None:
    """Write the errors as a bar chart; raises RuntimeMissingError where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeMissingError("`--png` needs matplotlib", hint="`pip install matplotlib`") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4), layout="constrained")
    places = np.arange(len(result.errors))
    for offset, method in enumerate(COMPARED):
        heights = [100 * row[method] for row in result.errors.values()]
        axes.bar(places + (offset - 1) * 0.27, heights, 0.25, label=f"{method} ({100 * result.mean(method):.1f} %)")
    axes.set_xticks(places, list(result.errors), rotation=30, ha="right")
    axes.set_ylabel("error, %")
    axes.set_title(f"{MODEL}: error by corruption and method, batch {BATCH}")
    axes.legend(title="method (mean)")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
