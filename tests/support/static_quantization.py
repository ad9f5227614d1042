"""8-bit models from onnxruntime's quantizer: an oracle, and a kind of file that users have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ttac.passes.quantize.ranges import _calibrators


def quantized_by_the_engine(plain: ir.Model, x: np.ndarray, folder: Path, **options: Any) -> Path:
    """The file of `plain` in QDQ form, one scale a channel, calibrated on `x`; skips without the quantizer."""
    _calibrators()
    quantization = pytest.importorskip("onnxruntime.quantization")
    name = plain.graph.inputs[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([{name: x}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    source, made = folder / "plain.onnx", folder / "theirs.onnx"
    ir.save(plain, source)
    form = {"quant_format": quantization.QuantFormat.QDQ, "per_channel": True}
    quantization.quantize_static(str(source), str(made), Reader(), **{**form, **options})
    return made
