"""Samples for all inputs of a model together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.shapes import BATCH, dims
from ttac.runtime.tensors import along


@dataclass(frozen=True)
class SampleSet:
    """The same samples for each input.

    Attributes:
        arrays: name of an input -> array; the first input is the one that methods distort.
        axes: name of an input -> the axis with the samples; None for an array that all samples share.
    """

    arrays: Mapping[str, np.ndarray]
    axes: Mapping[str, int | None]

    @classmethod
    def of(cls, model: ir.Model, samples: np.ndarray | SampleSet) -> SampleSet:
        """Return `samples` as a set; an array holds the samples of the first input of `model`."""
        if isinstance(samples, SampleSet):
            return samples
        x = model.graph.inputs[0]
        return cls({str(x.name): samples}, {str(x.name): 0})

    def __len__(self) -> int:
        """Number of samples."""
        return next(int(self.arrays[name].shape[axis]) for name, axis in self.axes.items() if axis is not None)

    @property
    def main(self) -> np.ndarray:
        """Samples of the first input, with the samples along the first axis."""
        name = next(iter(self.arrays))
        return np.moveaxis(self.arrays[name], self.axes[name] or 0, 0)

    def with_main(self, array: np.ndarray) -> SampleSet:
        """The set with other values [n, ...] for the first input."""
        name = next(iter(self.arrays))
        moved = np.ascontiguousarray(np.moveaxis(array, 0, self.axes[name] or 0))
        return replace(self, arrays={**self.arrays, name: moved})

    def part(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The arrays of the samples from `start` to `stop`, as feeds."""
        key = slice(start, stop)
        return {
            name: array if (axis := self.axes[name]) is None else np.ascontiguousarray(array[along(axis, key)])
            for name, array in self.arrays.items()
        }

    def first(self, count: int) -> SampleSet:
        """The first `count` samples."""
        return replace(self, arrays=self.part(0, count))

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Feeds of `size` samples each; the last ones may be fewer."""
        for start in range(0, len(self), size):
            yield self.part(start, start + size)

    def filled(self, count: int) -> SampleSet:
        """The set with `count` more copies of the first sample at its end."""
        longer = {
            name: array if (axis := self.axes[name]) is None else _filled(array, axis, count)
            for name, array in self.arrays.items()
        }
        return replace(self, arrays=longer)


def _filled(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    return np.concatenate([array, array[along(axis, slice(1))].repeat(count, axis)], axis)


def sample_axis(value: ir.Value) -> int | None:
    """Return the axis of size N of an input in normal form, None if it has none."""
    sizes = dims(value)
    return sizes.index(BATCH) if BATCH in sizes else None


def random_samples(inputs: Sequence[ir.Value], count: int, axes: Mapping[str, int | None] | None = None) -> SampleSet:
    """Return `count` random samples for graph inputs with bound sizes.

    Args:
        axes: the axis of each input with the samples; without it, the axis of size N.
    """
    axes = {str(x.name): sample_axis(x) for x in inputs} if axes is None else axes
    arrays = {}
    for position, x in enumerate(inputs):
        assert x.shape is not None
        axis = axes[str(x.name)]
        shape = [count if place == axis else _bound(x, size) for place, size in enumerate(x.shape)]
        arrays[str(x.name)] = random_input(x, shape, seed=position)
    return SampleSet(arrays, axes)


def _bound(x: ir.Value, size: int | ir.SymbolicDim) -> int:
    if not isinstance(size, int):
        raise UnsupportedError(f"the size `{size.value}` of the input `{x.name}` is open")
    return size


def random_input(x: ir.Value, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Return random values for the graph input `x`: standard normal floats, or numbers that its readers accept.

    Integers are from 0 to 255 for bytes, below the number of rows that a Gather reads, else 0 or 1.  A single float,
    such as a temperature, is 1.
    """
    dtype, random = (x.dtype or ir.DataType.FLOAT).numpy(), np.random.default_rng(seed)
    if dtype.kind == "f":
        alone = seed > 0 and all(size == 1 for size in shape)
        return np.ones(shape, dtype) if alone else random.standard_normal(shape).astype(dtype)
    high = 256 if dtype == np.uint8 else 2
    rows = [_rows_read(node, x) for node in _readers(x)]
    return random.integers(0, min((count for count in rows if count), default=high), shape).astype(dtype)


def _readers(x: ir.Value) -> list[ir.Node]:
    """The nodes that read `x`, also behind Casts, once for each use."""
    casts = [use.node.outputs[0] for use in x.uses() if use.node.op_type == "Cast"]
    return [use.node for value in (x, *casts) for use in value.uses()]


def _rows_read(node: ir.Node, x: ir.Value) -> int:
    """The number of rows of the table from which `node` reads by index, 0 for another operator."""
    table = node.inputs[0]
    if node.op_type != "Gather" or table is x or table is None or table.shape is None:
        return 0
    size = table.shape[node.attributes.get_int("axis", 0)]
    return size if isinstance(size, int) else 0
