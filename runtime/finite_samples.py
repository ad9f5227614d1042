"""Samples with NaN or infinite values in a batch: the step runs without them, and their rows of the output are NaN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ttac.runtime.records import BATCH_AXIS, TensorSpec
from ttac.runtime.tensors import along, is_finite


@dataclass(frozen=True)
class FiniteSamples:
    """The finite samples of a batch.

    Attributes:
        inputs: the batch for the graphs, name to array; empty if no sample is finite.
        finite: bool [n], whether each sample of the user is finite; None if all are.
        learns: whether enough finite samples are left for a step.
    """

    inputs: Mapping[str, np.ndarray]
    finite: np.ndarray | None = None
    learns: bool = True

    @classmethod
    def of(cls, inputs: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], smallest: int) -> FiniteSamples:
        """The finite samples of `inputs`; fewer than `smallest` are filled up with the last one, and do not learn.

        An input without an axis of samples belongs to every sample.
        """
        axes = {spec.name: spec.batch_axis for spec in specs}
        count = sample_count(inputs, specs)
        if all(map(is_finite, inputs.values())):
            return cls(inputs=inputs)
        finite = np.logical_and.reduce([_finite_rows(array, axes[name], count) for name, array in inputs.items()])
        (chosen,) = np.nonzero(finite)
        learns = len(chosen) >= smallest
        if not len(chosen):
            return cls(inputs={}, finite=finite, learns=False)
        chosen = np.concatenate([chosen, np.full(max(0, smallest - len(chosen)), chosen[-1])])
        kept = {
            name: array if (axis := axes[name]) is None else array[along(axis, chosen)]
            for name, array in inputs.items()
        }
        return cls(inputs=kept, finite=finite, learns=learns)

    @property
    def dropped(self) -> int:
        """Number of samples that are not finite."""
        return 0 if self.finite is None else int((~self.finite).sum())

    def spread(self, outputs: Sequence[np.ndarray], specs: Sequence[TensorSpec]) -> list[np.ndarray]:
        """Outputs with a row for each sample of the user, NaN (0 in integers) where the sample is not finite.

        Outputs without a batch axis stay unchanged.
        """
        if self.finite is None:
            return list(outputs)
        return [self._spread(array, spec) for array, spec in zip(outputs, specs)]

    def blank(self, specs: Sequence[TensorSpec]) -> list[np.ndarray]:
        """Outputs of a batch without a finite sample; axes of unknown size have one entry."""
        assert self.finite is not None
        sizes = [[len(self.finite) if size == BATCH_AXIS else size for size in spec.shape] for spec in specs]
        shapes = [[size if isinstance(size, int) else 1 for size in shape] for shape in sizes]
        return [_blank(tuple(shape), np.dtype(spec.dtype)) for shape, spec in zip(shapes, specs)]

    def _spread(self, array: np.ndarray, spec: TensorSpec) -> np.ndarray:
        axis = spec.batch_axis
        if axis is None or self.finite is None:
            return array
        shape = list(array.shape)
        shape[axis] = len(self.finite)
        rows = np.moveaxis(_blank(tuple(shape), array.dtype), axis, 0)
        rows[self.finite] = np.moveaxis(array, axis, 0)[: int(self.finite.sum())]
        return np.ascontiguousarray(np.moveaxis(rows, 0, axis))


def sample_count(inputs: Mapping[str, np.ndarray], specs: Sequence[TensorSpec]) -> int:
    """Return the number of samples in `inputs`: the size along the axis of the samples of any input that has one."""
    axes = ((inputs[spec.name].shape, spec.batch_axis) for spec in specs)
    return next(int(shape[axis]) for shape, axis in axes if axis is not None)


def _finite_rows(array: np.ndarray, axis: int | None, count: int) -> np.ndarray:
    """Whether the values of each of `count` samples are finite, bool [count]."""
    if axis is None or array.dtype.kind != "f":
        return np.full(count, is_finite(array))
    rows: np.ndarray = np.isfinite(np.moveaxis(array, axis, 0)).reshape(count, -1).all(axis=1)
    return rows


def _blank(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.full(shape, np.nan if dtype.kind == "f" else 0, dtype)
