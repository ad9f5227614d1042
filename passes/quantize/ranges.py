"""The range of every activation on calibration data, by onnxruntime's own calibrators."""

from __future__ import annotations

import importlib
import io
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.errors import RuntimeMissingError, UnsupportedError
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.sample_set import SampleSet
from ttac.runtime.engine_import import engine

SAMPLES_AT_ONCE = 8
"""Number of samples run together: the calibrators keep every activation of the samples of one call."""

Range = tuple[float, float]
"""Lowest and highest value."""


def ranges(
    model: ir.Model, samples: np.ndarray | SampleSet, method: str, percentile: float = 99.99
) -> dict[str, Range]:
    """Return lowest and highest value by the name of each activation of `model`.

    Args:
        model: a normalised float model; it stays unchanged.
        samples: for all inputs, or float32 [n, ...] for the only input.
        method: "minmax", "percentile" (leaves out 100 - `percentile` percent of the values, half on each side) or
            "entropy" (the clipping that changes the distribution least).

    Raises RuntimeMissingError if the engine's quantizer cannot be imported, UnsupportedError if a value is not
    finite.
    """
    calibrate = _calibrators()
    options = {"symmetric": False, **({"percentile": percentile} if method == "percentile" else {})}
    kinds = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder, redirect_stdout(io.StringIO()):
        write_graphs(Path(folder), {"float": model})
        calibrator = calibrate.create_calibrator(
            Path(folder) / "float.onnx",
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=calibrate.CalibrationMethod[kinds[method]],
            extra_options=options,
        )
        for feeds in SampleSet.of(model, samples).batches(SAMPLES_AT_ONCE):
            calibrator.collect_data(_reader(calibrate, feeds))
        statistics = calibrator.compute_data()
    ends = {str(key): tuple(np.asarray(end).item() for end in data.range_value) for key, data in statistics.items()}
    _refuse_infinite(ends)
    return {key: (low, high) for key, (low, high) in ends.items()}


def _refuse_infinite(ends: Mapping[str, tuple[float, ...]]) -> None:
    wrong = [key for key, pair in ends.items() if not np.isfinite(pair).all()]
    if wrong:
        raise UnsupportedError(
            "activations are not finite on the calibration data, so they have no range",
            where=", ".join(f"`{key}`" for key in wrong[:4]),
            hint="check how the calibration samples are scaled",
        )


def _reader(calibrate: Any, feeds: dict[str, np.ndarray]) -> Any:
    class Reader(calibrate.CalibrationDataReader):  # type: ignore[misc]
        """Reader that returns all samples in one call."""

        def __init__(self) -> None:
            self.feeds = iter([feeds])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    return Reader()


def _calibrators() -> Any:
    """Return `onnxruntime.quantization.calibrate`; raises RuntimeMissingError if this engine lacks it."""
    engine()
    try:
        with _without_torch():
            return importlib.import_module("onnxruntime.quantization.calibrate")
    except ImportError as error:
        raise RuntimeMissingError(
            f"onnxruntime's quantizer cannot be imported: {error}",
            where="`--quantize int8`",
            hint="compile where the whole engine is installed: `pip install onnxruntime sympy`",
        ) from error


@contextmanager
def _without_torch() -> Iterator[None]:
    """Hide torch during an import: the quantizer's package also has tools for PyTorch, which cost 1.3 s and 200 MB."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hide:
            sys.modules.pop("torch", None)
