"""Operators by their definition in float64, where onnx.reference is wrong, refuses, or uses single precision."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun


class Erf(OpRun):
    """onnx.reference rounds the result to float32."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.array([math.erf(number) for number in x.reshape(-1)]).reshape(x.shape).astype(x.dtype),)


class GlobalMaxPool(OpRun):
    """onnx.reference returns the wrong shape unless there are two spatial axes."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GatherElements(OpRun):
    """onnx.reference refuses indices that are smaller than the data."""

    op_domain = ""

    def _run(self, x: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        part = tuple(slice(None) if i == axis % x.ndim else slice(n) for i, n in enumerate(indices.shape))
        return (np.take_along_axis(x[part], indices, axis),)


class ConvTranspose(OpRun):
    """onnx.reference fails on groups and is wrong with output padding."""

    op_domain = ""

    def _run(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, **given: Any) -> tuple[np.ndarray]:
        count = x.ndim - 2
        strides, dilations = given["strides"] or [1] * count, given["dilations"] or [1] * count
        pads, extra, group = given["pads"] or [0] * 2 * count, given["output_padding"] or [0] * count, given["group"]
        assert given["auto_pad"] in (None, "NOTSET") and given["output_shape"] is None
        whole = [
            (n - 1) * s + (k - 1) * d + 1 + e
            for n, s, k, d, e in zip(x.shape[2:], strides, w.shape[2:], dilations, extra, strict=True)
        ]
        y = np.zeros((x.shape[0], group, w.shape[1], *whole), x.dtype)
        grouped = x.reshape(x.shape[0], group, -1, *x.shape[2:])
        kernel = w.reshape(group, -1, *w.shape[1:])
        for tap in itertools.product(*(range(k) for k in w.shape[2:])):
            at = [
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, dilations, x.shape[2:], strides, strict=True)
            ]
            y[(..., *at)] += np.einsum("ngc...,gco->ngo...", grouped, kernel[(..., *tap)])
        y = y.reshape(x.shape[0], -1, *whole)
        y = y[(..., *(slice(pads[i], whole[i] - pads[count + i]) for i in range(count)))]
        return (y if b is None else y + b.reshape(-1, *[1] * count),)


class Scan(OpRun):
    """onnx.reference begins with the first slice only."""

    op_domain = ""

    def _run(self, *args: Any, num_scan_inputs: int, **given: Any) -> tuple[np.ndarray, ...]:
        states, sequences = list(args[:-num_scan_inputs]), args[-num_scan_inputs:]
        backwards = bool(given["scan_input_directions"])
        steps = range(len(sequences[0]))
        results = []
        for step in reversed(steps) if backwards else steps:
            names = self.body.input_names
            feeds = dict(zip(names, [*states, *(each[step] for each in sequences)], strict=True))
            outputs = self.body.run(None, feeds)
            states = outputs[: len(states)]
            results.append(outputs[len(states) :])
        stacked = [np.stack(each[::-1] if backwards else each) for each in zip(*results, strict=True)]
        return (*states, *stacked)


OPERATORS: list[type[OpRun]] = [Erf, GlobalMaxPool, GatherElements, ConvTranspose, Scan]
