"""Input arrays of the user, checked against the contract of the model before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from ttac.errors import UsageError
from ttac.runtime.records import Manifest, TensorSpec


def check_inputs(x: np.ndarray | Mapping[str, np.ndarray], manifest: Manifest) -> dict[str, np.ndarray]:
    """Return the inputs by name, in the dtypes the model takes.

    An array is the value of the only input.  float16 and float64 become float32.  Integers do not become floats,
    because a model of floats was trained on normalised values.  Raises UsageError for any other mismatch.
    """
    arrays = x if isinstance(x, Mapping) else {manifest.inputs[0].name: x}
    names = [spec.name for spec in manifest.inputs]
    if set(arrays) != set(names):
        listed = ", ".join(f"`{name}`" for name in names)
        passed = ", ".join(f"`{name}`" for name in arrays) or "none"
        raise UsageError(
            f"the model takes the inputs {listed}; got {passed}", where="the input", hint="pass a dict, name to array"
        )
    inputs = {spec.name: _checked(arrays[spec.name], spec, manifest) for spec in manifest.inputs}
    counts = {name: len(array) for name, array in inputs.items()}
    if len(set(counts.values())) > 1:
        raise UsageError(
            f"the inputs differ in their number of samples: {counts}", where="the input", hint="pass one batch"
        )
    return inputs


def _checked(value: object, spec: TensorSpec, manifest: Manifest) -> np.ndarray:
    array = value if isinstance(value, np.ndarray) else _converted(value, spec)
    array = _cast(array, spec)
    expected = str([f"{manifest.smallest} to {manifest.planned}", *spec.shape[1:]]).replace("'", "")
    if array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:]:
        hint = "resize the samples, or recompile with `--shape` where the model leaves its sizes open"
        if array.ndim != len(spec.shape):
            hint = "pass a batch: the samples lie along the first axis"
        if array.shape == spec.shape[1:]:
            hint = "one sample needs a batch axis too: `x[None]`"
        _refuse(spec, f"has shape {list(array.shape)}; the model takes {expected}", hint)
    if len(array) < manifest.smallest:
        hint = "collect more samples first" if len(array) else "pass at least one sample"
        _refuse(spec, f"has {len(array)} samples; the bundle takes {manifest.smallest} to {manifest.planned}", hint)
    if len(array) > manifest.planned:
        hint = f"pass at most {manifest.planned} at a time, or recompile with `--batch {len(array)}`"
        _refuse(spec, f"has {len(array)} samples; the bundle is planned for {manifest.planned}", hint)
    return array


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
