"""Gradient of Resize, which is a matrix along each axis; the matrix depends on the sizes and the mode only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient
from ttac.passes.differentiate.rules.facts import constant, present, rank, refusal
from ttac.passes.graph.reshaping import along
from ttac.passes.graph.shapes import dims


@gradient("Resize")
def resize(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x resampled: x times a matrix per axis   ->   dx = dz times the transposed matrices."""
    _refuse_other_modes(node)
    scales = _scales(node)
    matrices = {}
    for axis, (before, after) in enumerate(zip(dims(node.inputs[0]), dims(node.outputs[0]), strict=True)):
        if scales[axis] != 1.0 or before != after:
            matrices[axis] = sampling_matrix(node, int(before), int(after), scales[axis])
    spread = [_repetition(matrix) for matrix in matrices.values()]
    if matrices and list(matrices) == list(range(2, rank(dz))) and all(spread):
        return op.Mul(op.AveragePool(dz, kernel_shape=spread, strides=spread), float(np.prod(spread)))
    for axis, matrix in matrices.items():
        dz = along(op, dz, axis, matrix.T)
    return dz


def sampling_matrix(node: ir.Node, before: int, after: int, scale: float) -> np.ndarray:
    """Return the weight of each old element in each new element of an axis, [before, after], by the Resize's `mode`."""
    at = _coordinates(node, before, after, np.float32(scale))
    matrix, new = np.zeros((before, after)), np.arange(after)
    if node.attributes.get_string("mode", "nearest") == "nearest":
        matrix[_nearest(node, at).clip(0, before - 1).astype(int), new] = 1.0
        return matrix
    at = at.astype(np.float64).clip(0, before - 1)
    low = np.floor(at).astype(int)
    np.add.at(matrix, (low, new), 1.0 - (at - low))
    np.add.at(matrix, ((low + 1).clip(0, before - 1), new), at - low)
    return matrix


def _coordinates(node: ir.Node, before: int, after: int, scale: np.float32) -> np.ndarray:
    """Return the place of each new element on the old axis, in float32 as in the engine."""
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    new, half = np.arange(after, dtype=np.float32), np.float32(0.5)
    if mode == "asymmetric":
        return new / scale
    if mode == "align_corners":
        return new * np.float32(before - 1) / np.float32(max(1, after - 1))
    centred = (new + half) / scale - half
    if mode == "half_pixel_symmetric":
        return centred + np.float32(before / 2 * (1 - after / (float(scale) * before)))
    return np.zeros_like(new) if mode == "pytorch_half_pixel" and after == 1 else centred


def _nearest(node: ir.Node, at: np.ndarray) -> np.ndarray:
    mode = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    if mode.startswith("round"):
        at = at - np.float32(0.5) if mode == "round_prefer_floor" else at + np.float32(0.5)
    rounded: np.ndarray = np.ceil(at) if mode in ("ceil", "round_prefer_floor") else np.floor(at)
    return rounded


def _repetition(matrix: np.ndarray) -> int:
    """Return k if the matrix repeats each element k times, else 0."""
    before, after = matrix.shape
    times = after // before
    return times if np.array_equal(matrix, np.repeat(np.eye(before), max(1, times), axis=1)) else 0


def _scales(node: ir.Node) -> list[float]:
    """Return the scale of each axis: from the node, or new size over old size."""
    count = rank(node.inputs[0])
    if present(node, 2) is not None and (factors := constant(node, 2)) is not None and factors.size:
        axes = node.attributes.get_ints("axes") or range(count)
        scales = [1.0] * count
        for axis, scale in zip(axes, factors.tolist(), strict=True):
            scales[axis % count] = float(scale)
        return scales
    pairs = zip(dims(node.inputs[0]), dims(node.outputs[0]), strict=True)
    return [1.0 if a == b else int(b) / int(a) for a, b in pairs]


def _refuse_other_modes(node: ir.Node) -> None:
    named = {
        "mode": ("nearest", ("nearest", "linear")),
        "coordinate_transformation_mode": (
            "half_pixel",
            ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"),
        ),
        "keep_aspect_ratio_policy": ("stretch", ("stretch",)),
    }
    for name, (default, known) in named.items():
        value = node.attributes.get_string(name, default)
        if value not in known:
            raise refusal(node, f"its `{name}` is {value!r}, and only {', '.join(map(repr, known))} have one")
    if node.attributes.get_int("antialias", 0):
        raise refusal(node, "its `antialias` is on")
