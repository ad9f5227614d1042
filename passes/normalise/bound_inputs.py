"""Bind every size of the inputs but the batch: as the file states it, as the user says, or as another input has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ttac.errors import UnsupportedError, UsageError
from ttac.passes.graph.shapes import BATCH
from ttac.passes.load.input_axes import Axes
from ttac.suggest import did_you_mean

Shape = Sequence[int] | Mapping[str, Sequence[int]]
"""Shape of one sample: that of the first input, or of several inputs by their names."""

UNNAMED = "?"
"""Symbol of a size without a name in the file."""


def bind(model: ir.Model, shape: Shape | None, axes: Axes) -> int | None:
    """Bind every dimension of the inputs but the batch, in place, and forget the shapes that other tools inferred.

    An open size with a name takes the size of the same name in an input before.

    Args:
        shape: sizes of one sample where the file leaves them open.
        axes: axis of each input with the samples.

    Returns the batch that the file was exported with, None where it is open.
    Raises UsageError for a shape that contradicts the file, UnsupportedError for a size that stays open.
    """
    main = model.graph.inputs[0]
    shapes = _by_name(model.graph.inputs, shape)
    known: dict[str, int] = {}
    traced: int | None = None
    for x in model.graph.inputs:
        axis, stated = axes[str(x.name)], _stated(x)
        if x is main and stated is not None and len(stated) < 2:
            raise UnsupportedError(
                f"the input `{x.name}` has shape {x.shape}, without an axis after the batch",
                hint="export a model that takes [N, ...], one row or image for each sample",
            )
        batch = stated[axis] if stated is not None and axis is not None else BATCH
        sizes = None if stated is None else [known.get(str(d), d) for i, d in enumerate(stated) if i != axis]
        sample = _sample(str(x.name), sizes, shapes.get(str(x.name)), x is main)
        known |= _named(stated, axis, sample)
        traced = batch if x is main and isinstance(batch, int) else traced
        if axis is not None:
            sample.insert(axis, traced or BATCH)  # type: ignore[arg-type]
        x.shape = ir.Shape(sample)
    forget_shapes(model)
    return traced


def forget_shapes(model: ir.Model) -> None:
    """Forget the shapes of all values but inputs and outputs, in place."""
    for value in [v for node in model.graph for v in node.outputs if not v.is_graph_output()]:
        value.shape = None


def _by_name(inputs: Sequence[ir.Value], shape: Shape | None) -> Mapping[str, Sequence[int]]:
    if shape is None:
        return {}
    if not isinstance(shape, Mapping):
        return {str(inputs[0].name): shape}
    names = [str(x.name) for x in inputs]
    for name in shape:
        if name not in names:
            raise UsageError(f"the model has no input `{name}`", where="`--shape`", hint=did_you_mean(name, names))
    return shape


def _stated(x: ir.Value) -> list[int | str] | None:
    if x.shape is None:
        return None
    return [d if isinstance(d, int) and d > 0 else str(getattr(d, "value", None) or UNNAMED) for d in x.shape]


def _named(stated: Sequence[int | str] | None, axis: int | None, sample: Sequence[int]) -> dict[str, int]:
    """The sizes by the names that the file gives them."""
    names = [size for place, size in enumerate(stated or ()) if place != axis]
    return {name: size for name, size in zip(names, sample, strict=False) if isinstance(name, str) and name != UNNAMED}


def _sample(name: str, stated: Sequence[int | str] | None, shape: Sequence[int] | None, main: bool) -> list[int]:
    if shape is not None:
        sizes = [int(size) for size in shape]
        if stated is not None and (
            len(stated) != len(sizes) or any(isinstance(a, int) and a != b for a, b in zip(stated, sizes, strict=True))
        ):
            raise UsageError(
                f"samples of shape {sizes} do not fit the input `{name}`, which takes {_text(stated)}",
                hint=f"`--shape {'x'.join(str(size) for size in stated)}`" if stated else "",
            )
        return sizes
    if stated is None or any(isinstance(size, str) for size in stated):
        example = "x".join(str(size if isinstance(size, int) else 224) for size in stated or (3, 224, 224))
        example = example if main else f"{name}={example}"
        unbound = [f"`{size}`" for size in stated or [] if isinstance(size, str)]
        raise UnsupportedError(
            f"the size of {', '.join(unbound) or 'a sample'} is open; only the batch may be",
            where=f"input `{name}` {_text(stated) if stated is not None else ''}".rstrip(),
            hint=f"state the shape of a sample: `--shape {example}`; a compile also reads it from `--calibration`, and "
            "`--max-shape` keeps it open",
        )
    return [int(size) for size in stated]


def _text(stated: Sequence[int | str]) -> str:
    return "[N, " + ", ".join(str(size) for size in stated) + "]"
