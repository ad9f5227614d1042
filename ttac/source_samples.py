"""The calibration samples of a compile: unlabelled samples of the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.options import CompileOptions
from ttac.passes.graph.sample_set import SampleSet, random_samples
from ttac.passes.load.input_axes import axes_of
from ttac.passes.normalise.bound_inputs import Shape
from ttac.passes.norms import calibration
from ttac.samples.named_arrays import InputSizes, read_arrays


@dataclass(frozen=True)
class Samples:
    """Calibration samples for all inputs of the model, or none.

    `moments` has the mean and the variance of values on the samples, by name, once they are measured.
    """

    known: SampleSet | None = None
    moments: dict[str, calibration.Moments] = field(default_factory=dict)

    @property
    def shape(self) -> Shape | None:
        """Shape of one sample, for several inputs by their names; None without samples."""
        if self.known is None:
            return None
        arrays, axes = self.known.arrays, self.known.axes
        shapes = {
            name: tuple(size for axis, size in enumerate(array.shape) if axis != axes[name])
            for name, array in arrays.items()
        }
        return shapes if len(shapes) > 1 else next(iter(shapes.values()))

    def few(self, count: int, inputs: Sequence[ir.Value]) -> SampleSet:
        """`count` samples for the `inputs`: calibration samples, or random ones where those are too few."""
        if self.known is not None and len(self.known) >= count:
            return self.known.first(count)
        return random_samples(inputs, count)


def samples_of(options: CompileOptions, model: ir.Model, say: Callable[[str], None]) -> Samples:
    """The calibration samples of `options`, checked against the inputs of the loaded `model`.

    Raises UsageError for samples that cannot be read or do not fit, UnsupportedError if no shape is known.
    """
    source, inputs, axes = options.calibration, list(model.graph.inputs), axes_of(model)
    if source is None:
        return Samples()
    x = inputs[0]
    if len(inputs) > 1 or axes[str(x.name)] or isinstance(source, Mapping):
        arrays, _ = read_arrays(source, sizes_of(model, options.shape), "`--calibration`")
        known = SampleSet(arrays, dict(axes))
        for name, array in arrays.items():
            calibration.refuse_infinite(array, f"the array `{name}`")
        calibration.say_doubts(known.main, say)
        return Samples(known)
    stated = [size if isinstance(size, int) else None for size in (x.shape or ())][1:]
    stated_shape: Any = options.shape if not isinstance(options.shape, Mapping) else options.shape.get(str(x.name))
    shape = stated_shape or calibration.sample_shape(source) or tuple(size or 0 for size in stated)
    dtype = str((x.dtype or ir.DataType.FLOAT).numpy())
    array = calibration.read(source, bound_sizes(shape, stated), options.pixels, say, dtype=dtype)
    return Samples(SampleSet({str(x.name): array}, {str(x.name): 0}))


def sizes_of(model: ir.Model, shape: Shape | None = None) -> tuple[InputSizes, ...]:
    """The sizes of every input of a loaded `model`, with those of `shape` where the file leaves them open."""
    return tuple(_sizes(value, axes_of(model), shape) for value in model.graph.inputs)


def _sizes(value: ir.Value, axes: Mapping[str, int | None], shape: Shape | None) -> InputSizes:
    """The sizes that the file and the option `--shape` state for an input; the option alone means the first input."""
    name = str(value.name)
    axis, chosen = axes[name], list(shape.get(name, ())) if isinstance(shape, Mapping) else []
    if chosen and axis is not None:
        chosen.insert(axis, 0)
    stated = [size if isinstance(size, int) else None for size in value.shape or ()]
    sizes = [size or other or None for size, other in zip(stated, chosen or [0] * len(stated), strict=False)]
    return InputSizes(name=name, dtype=str((value.dtype or ir.DataType.FLOAT).numpy()), axis=axis, sizes=tuple(sizes))


def bound_sizes(shape: Sequence[int], stated: Sequence[int | None]) -> tuple[int, ...]:
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
