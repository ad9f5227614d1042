"""Input arrays of the user, checked against the contract of the model before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from ttac.errors import UsageError
from ttac.runtime.records import BATCH_AXIS, Manifest, TensorSpec


def check_inputs(x: np.ndarray | Mapping[str, np.ndarray], manifest: Manifest) -> dict[str, np.ndarray]:
    """Return the inputs by name, in the dtypes the model takes.

    An array is the value of the only input.  float16 and float64 become float32.  Integers do not become floats,
    because a model of floats was trained on normalised values.  Raises UsageError for any other mismatch.
    """
    arrays = _named(x, manifest)
    inputs = {spec.name: _checked(arrays[spec.name], spec, manifest) for spec in manifest.inputs}
    axes = {spec.name: spec.batch_axis for spec in manifest.inputs}
    counts = {name: array.shape[axis] for name, array in inputs.items() if (axis := axes[name]) is not None}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"`{name}` {list(inputs[name].shape)} holds {count}" for name, count in counts.items())
        raise UsageError(
            f"the inputs differ in their number of samples: {listed}",
            where="the input",
            hint="pass the same samples to each input",
        )
    _check_sizes(inputs, manifest)
    return inputs


def _check_sizes(inputs: Mapping[str, np.ndarray], manifest: Manifest) -> None:
    """Raise UsageError for an open size that is too small or too large, no multiple, or different in two inputs."""
    seen: dict[str, tuple[int, str]] = {}
    for spec in manifest.inputs:
        for symbol, size in zip(spec.shape, inputs[spec.name].shape):
            if not isinstance(symbol, str) or symbol not in manifest.sizes:
                continue
            limit, shape = manifest.sizes[symbol], list(inputs[spec.name].shape)
            if 0 < size < limit.smallest:
                problem = (
                    f"has shape {shape}; its size `{symbol}` is {size}, the smallest that works is {limit.smallest}"
                )
                _refuse(spec, problem, "pad or resize the samples")
            if not 0 < size <= limit.largest:
                hint = f"resize the samples, or recompile with a larger `--max-shape` than {limit.largest}"
                _refuse(spec, f"has shape {shape}; its size `{symbol}` is {size}, at most {limit.largest} fits", hint)
            if size % limit.multiple:
                problem = f"has shape {shape}; its size `{symbol}` is {size}, no multiple of {limit.multiple}"
                _refuse(spec, problem, "pad or resize the samples")
            before, other = seen.setdefault(symbol, (size, spec.name))
            if before != size:
                problem = f"has shape {shape}; its size `{symbol}` is {size}, that of `{other}` is {before}"
                _refuse(spec, problem, "pass inputs of the same size")


def _named(x: Any, manifest: Manifest) -> Mapping[str, Any]:
    """The arrays by the names of the model's inputs; raises UsageError for a missing or an unknown name."""
    names = [spec.name for spec in manifest.inputs]
    alone = not isinstance(x, Mapping)
    if alone and len(names) == 1:
        return {names[0]: x}
    passed = [] if alone else [str(name) for name in x]
    if set(passed) == set(names):
        return x  # type: ignore[no-any-return]
    listed, got = (", ".join(f"`{name}`" for name in each) for each in (names, passed))
    raise UsageError(
        f"the model takes the inputs {listed}; got {'a single array' if alone else got or 'none'}",
        where="the input",
        hint="pass a dict, name to array",
    )


def _checked(value: object, spec: TensorSpec, manifest: Manifest) -> np.ndarray:
    array = value if isinstance(value, np.ndarray) else _converted(value, spec)
    array = _cast(array, spec)
    axis = spec.batch_axis
    if not _fits(array, spec):
        counts = f"{manifest.smallest} to {manifest.planned}"
        expected = str([counts if size == BATCH_AXIS else size for size in spec.shape]).replace("'", "")
        _refuse(spec, f"has shape {list(array.shape)}; the model takes {expected}", _way_out(array, spec))
    if axis is None:
        return array
    count = array.shape[axis]
    if count < manifest.smallest:
        hint = "collect more samples first" if count else "pass at least one sample"
        _refuse(spec, f"has {count} samples; the bundle takes {manifest.smallest} to {manifest.planned}", hint)
    if count > manifest.planned:
        hint = f"pass at most {manifest.planned} at a time, or recompile with `--batch {count}`"
        _refuse(spec, f"has {count} samples; the bundle is planned for {manifest.planned}", hint)
    return array


def _fits(array: np.ndarray, spec: TensorSpec) -> bool:
    """Whether every size but the number of samples is that of the model."""
    sizes = zip(array.shape, spec.shape)
    return array.ndim == len(spec.shape) and all(isinstance(own, str) or own == size for size, own in sizes)


def _way_out(array: np.ndarray, spec: TensorSpec) -> str:
    """The hint for an array of a wrong shape."""
    axis = spec.batch_axis
    if axis is not None and array.shape == tuple(size for size in spec.shape if size != BATCH_AXIS):
        return f"one sample needs a batch axis too: `{'x[None]' if not axis else f'np.expand_dims(x, {axis})'}`"
    if array.ndim == len(spec.shape):
        return "resize the samples, or recompile with `--shape` where the model leaves its sizes open"
    if axis is None:
        return "pass one array for the whole batch"
    return f"pass a batch: the samples lie along {'the first axis' if not axis else f'axis {axis}'}"


def _converted(value: object, spec: TensorSpec) -> np.ndarray:
    """The array that numpy makes of `value`, such as a list or a tensor on the CPU."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        _refuse(spec, f"is a {type(value).__name__} that is no array: {error}", "pass a numpy array")


def _cast(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if array.dtype == dtype:
        return array
    if array.dtype.kind == "f" == dtype.kind:
        with np.errstate(over="ignore"):
            return array.astype(dtype)
    if array.dtype.kind in "iu" and dtype.kind in "iu" and np.can_cast(array.dtype, dtype, "safe"):
        return array.astype(dtype)
    hint = f"`x.astype(np.{spec.dtype})`, if the values mean the same"
    if array.dtype.kind in "iu" and dtype.kind == "f":
        hint = "scale and normalise the values as in training, then pass floats"
    _refuse(spec, f"has dtype {array.dtype}; the model takes {spec.dtype}", hint)


def _refuse(spec: TensorSpec, problem: str, hint: str) -> NoReturn:
    raise UsageError(f"the input {problem}", where=f"input `{spec.name}`", hint=hint)


def thread_count(threads: int | None, planned: int) -> int:
    """The number of threads that a caller asks for, by default the planned one; raises UsageError for no count."""
    if threads is not None and (not isinstance(threads, int) or threads < 0):
        raise UsageError(f"`threads` is {threads!r}, not a count", where="`threads=`", hint="0 leaves it to the engine")
    return planned if threads is None else threads
