"""The axis of each input along which the samples lie, as the names of its sizes and the user say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ttac.errors import UnsupportedError, UsageError
from ttac.suggest import did_you_mean

Axes = Mapping[str, int | None]
"""Name of an input -> the axis with the samples; None for an input that all samples share."""

AXES = "ttac.axes"
"""Key of `model.meta`: the axes of the inputs."""
OPTION = "--batch-axis"
SHARED = "none"
"""Word of the option for an input that all samples share."""
BATCH_NAME = re.compile(r"n|b|bs|.*batch.*", re.IGNORECASE)
"""Names that exporters and people give the size of a batch."""


def axes_of(model: ir.Model) -> Axes:
    """Return the axes that `load` found, or find them by the names of the sizes alone."""
    known: Axes | None = model.meta.get(AXES)
    return known if known is not None else sample_axes(model.graph.inputs, {})


def sample_axes(inputs: Sequence[ir.Value], stated: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the axis of each of the `inputs`, of which the first takes the samples; `stated` has the user's choice.

    The samples of the first input lie along the axis whose size has the name of a batch, else along the first axis.
    Another input follows by the name of its size, or, in a file of fixed sizes, by the size itself.

    Raises UsageError for a name or an axis that does not exist, UnsupportedError if the first input has no axis.
    """
    chosen = _stated_axes(inputs, stated)
    main, *others = inputs
    axes = {str(main.name): chosen.get(str(main.name), _main_axis(main))}
    first = axes[str(main.name)]
    batch = _size(main, first)
    for value in others:
        axes[str(value.name)] = chosen[str(value.name)] if value.name in chosen else _axis_like(value, batch)
    return axes


def _stated_axes(inputs: Sequence[ir.Value], stated: Mapping[str, Any]) -> dict[str, int | None]:
    named = {str(value.name): value for value in inputs}
    chosen: dict[str, int | None] = {}
    for name, text in stated.items():
        where = f"`{OPTION} {name}={text}`"
        if name not in named:
            raise UsageError(f"the model has no input `{name}`", where=where, hint=did_you_mean(name, named))
        rank = len(named[name].shape or ())
        if str(text) == SHARED and named[name] is not inputs[0]:
            chosen[name] = None
        elif str(text).isdecimal() and int(text) < rank:
            chosen[name] = int(text)
        else:
            problem = f"the input `{name}` {_shape(named[name])} has no axis `{text}`"
            hint = f"give an axis from 0 to {rank - 1}, or `{SHARED}` for an input that all samples share"
            raise UsageError(problem, where=where, hint=hint)
    return chosen


def _main_axis(value: ir.Value) -> int:
    """The axis named like a batch, else the first."""
    if value.shape is not None and not len(value.shape):
        raise UnsupportedError(
            f"the input `{value.name}` is a single number, without an axis of samples",
            hint="say which input takes the samples: `--input NAME`",
        )
    named = [axis for axis in range(len(value.shape or ())) if BATCH_NAME.fullmatch(_symbol(value, axis) or "")]
    return named[0] if named else 0


def _axis_like(value: ir.Value, batch: int | str | None) -> int | None:
    """The axis of another input with the size `batch`: the symbol of the first input's, or its number."""
    rank = len(value.shape or ())
    sizes = [_size(value, axis) for axis in range(rank)]
    same = [axis for axis, size in enumerate(sizes) if size == batch and batch is not None]
    named = [axis for axis, size in enumerate(sizes) if isinstance(size, str) and BATCH_NAME.fullmatch(size)]
    if isinstance(batch, int) and not named:
        return same[0] if same and rank > 1 else None
    if same or named:
        return [*same, *named][0]
    unnamed = [axis for axis, size in enumerate(sizes) if size is None]
    return unnamed[0] if unnamed else 0 if rank and not isinstance(sizes[0], int) else None


def _size(value: ir.Value, axis: int | None) -> int | str | None:
    if value.shape is None or axis is None or axis >= len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else _symbol(value, axis)


def _symbol(value: ir.Value, axis: int) -> str | None:
    """The name of a size, None for a number or a size without a name."""
    size = value.shape[axis] if value.shape is not None else None
    return size.value if isinstance(size, ir.SymbolicDim) else None


def _shape(value: ir.Value) -> str:
    return str(value.shape) if value.shape is not None else "[?]"
