"""Max pooling for the onnx package's reference evaluator.

Its own MaxPool loops over the windows in Python, and took more than half of a forward of ResNet-18 in float64: an
image has ten thousand windows, and a kernel nine taps.  Its own GlobalMaxPool takes the wrong axes of signals and
volumes.
"""

from __future__ import annotations

import itertools
from operator import add
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_max_pool import MaxPool as SlowMaxPool

EXPLICIT = ("NOTSET", "", None)
"""Values of `auto_pad` with which the attribute `pads` counts."""


class MaxPool(SlowMaxPool):
    """ONNX's MaxPool; the package's own code runs for indices, rounding up, and padding that is not explicit."""

    def _run(self, x: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:  # type: ignore[override]
        explicit = attributes.get("auto_pad") in EXPLICIT and not attributes.get("ceil_mode")
        if not explicit or len(self.onnx_node.output) > 1:
            return tuple(super()._run(x, **attributes))  # type: ignore[no-untyped-call]
        kernel = attributes["kernel_shape"]
        axes = len(kernel)
        strides = attributes.get("strides") or [1] * axes
        dilations = attributes.get("dilations") or [1] * axes
        pads = attributes.get("pads") or [0] * (2 * axes)
        padding = zip(pads[:axes], pads[axes:], strict=True)
        padded = np.pad(x, [(0, 0), (0, 0), *padding], constant_values=-np.inf)
        reaches = [(taps - 1) * dilation for taps, dilation in zip(kernel, dilations, strict=True)]
        ends = [size - reach for size, reach in zip(padded.shape[2:], reaches, strict=True)]
        windows = (
            padded[(slice(None), slice(None), *map(slice, starts, map(add, starts, ends), strides))]
            for tap in itertools.product(*map(range, kernel))
            if (starts := [place * dilation for place, dilation in zip(tap, dilations, strict=True)])
        )
        result = next(windows).copy()
        for window in windows:
            np.maximum(result, window, out=result)
        return (result,)


class GlobalMaxPool(OpRun):
    """ONNX's GlobalMaxPool of x [N, C, ...] with any number of axes behind the channels."""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)
