"""The calibration samples of a compile: unlabelled samples of the source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.options import CompileOptions
from ttac.passes.graph.execute import random_input
from ttac.passes.norms import calibration


@dataclass(frozen=True)
class Samples:
    """Calibration samples [n, ...] in the dtype of the model's input, or none."""

    array: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one sample, None without samples."""
        return None if self.array is None else self.array.shape[1:]

    def few(self, count: int, x: ir.Value) -> np.ndarray:
        """`count` samples for the input `x`: calibration samples, or random ones where those are too few."""
        if self.array is not None and len(self.array) >= count:
            return np.ascontiguousarray(self.array[:count])
        assert x.shape is not None
        shape = [int(size) for size in x.shape[1:]]  # type: ignore[arg-type]
        return random_input(x, (count, *shape))


def samples_of(options: CompileOptions, x: ir.Value, say: Callable[[str], None]) -> Samples:
    """The calibration samples of `options`, checked against the model's input `x`.

    Raises UsageError for samples that cannot be read or do not fit, UnsupportedError if no shape is known.
    """
    if options.calibration is None:
        return Samples()
    stated = [size if isinstance(size, int) else None for size in (x.shape or ())][1:]
    shape = options.shape or calibration.sample_shape(options.calibration) or tuple(size or 0 for size in stated)
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    return Samples(calibration.read(options.calibration, _bound(shape, stated), options.pixels, say, dtype=str(dtype)))


def _bound(shape: Sequence[int], stated: Sequence[int | None]) -> tuple[int, ...]:
    """The sizes that the model states, with open sizes from `shape`.

    Raises UnsupportedError for a size that stays open: a folder of images has no size.
    """
    others = list(shape) if len(shape) == len(stated) else [0] * len(stated)
    bound = tuple(size or other for size, other in zip(stated, others, strict=True))
    if not all(bound):
        raise UnsupportedError(
            f"the model leaves the shape of a sample open: {list(stated)}", hint="state it: `--shape 3x224x224`"
        )
    return bound
