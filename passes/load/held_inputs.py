"""Inputs that keep one value in use, such as a sampling rate or a threshold: constants of the model from here on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.errors import UsageError
from ttac.passes.graph.rewire import initializer
from ttac.suggest import did_you_mean

OPTION = "--hold"


def hold_inputs(model: ir.Model, values: Mapping[str, Any]) -> None:
    """Replace the named inputs by constants, in place.

    A value is a number, an array, a text of numbers with commas, or the path of an `.npy` file.  One number fills the
    shape of the input; an open size of the input becomes the number of samples, taken from the first other input.

    Raises UsageError for a name without an input, or for a value that does not fit the input's dtype or shape.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    for name, stated in values.items():
        where = f"`{OPTION} {name}=...`"
        if name not in inputs:
            raise UsageError(f"the model has no input `{name}`", where=where, hint=did_you_mean(name, inputs))
        value = inputs[name]
        array = _array(stated, value, where)
        model.graph.inputs.remove(value)
        others = [other for other in model.graph.inputs if str(other.name) not in values]
        if not array.ndim and value.shape is not None and len(value.shape):
            _fill(model, value, array, others, where)
        else:
            value.const_value, value.shape = ir.tensor(array, name=name), ir.Shape(array.shape)
            model.graph.register_initializer(value)


def _array(stated: Any, value: ir.Value, where: str) -> np.ndarray:
    """The stated value in the dtype of the input; without axes where it is one number."""
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    try:
        array = np.load(stated, allow_pickle=False) if str(stated).endswith(".npy") else _numbers(stated)
        converted = np.asarray(array).astype(dtype)
    except (OSError, ValueError) as error:
        hint = "give a number, numbers with commas, or the path of an `.npy` file"
        raise UsageError(f"`{stated}` is no value: {error}", where=where, hint=hint) from error
    if converted.size == 1 and not str(stated).endswith(".npy") and not isinstance(stated, np.ndarray):
        converted = converted.reshape(())
    if converted.ndim and value.shape is not None and not _fits(converted, value.shape):
        raise UsageError(
            f"the value has shape {list(converted.shape)}, the input `{value.name}` {value.shape}",
            where=where,
            hint="give one number for all places, or an `.npy` file in the shape of the input",
        )
    return converted


def _numbers(stated: Any) -> Any:
    if not isinstance(stated, (str, Path)):
        return stated
    words = [word.strip().lower() for word in str(stated).split(",")]
    return [{"true": 1.0, "false": 0.0}.get(word) if word in ("true", "false") else float(word) for word in words]


def _fits(array: np.ndarray, shape: ir.Shape) -> bool:
    sizes = zip(array.shape, shape, strict=False)
    return array.ndim == len(shape) and all(not isinstance(size, int) or size == own for own, size in sizes)


def _fill(model: ir.Model, value: ir.Value, array: np.ndarray, others: list[ir.Value], where: str) -> None:
    """Let all readers of `value` read the number in `array`, repeated to the shape of the input."""
    assert value.shape is not None
    name = str(value.name)
    if all(isinstance(size, int) for size in value.shape):
        value.const_value = ir.tensor(np.full([int(str(size)) for size in value.shape], array), name=name)
        model.graph.register_initializer(value)
        return
    if not others:
        raise UsageError("no input is left that takes samples", where=where, hint="hold fewer inputs")
    value.name = f"{name}.held"
    number = initializer(model.graph, f"{name}.value", array)
    count = ir.node("Shape", [others[0]], {"start": 0, "end": 1}, name=f"{name}.count")
    sizes: list[ir.Value] = []
    for axis, size in enumerate(value.shape):
        if isinstance(size, int):
            sizes.append(initializer(model.graph, f"{name}.{axis}", np.array([size], np.int64)))
        else:
            sizes.append(count.outputs[0])
    shape = ir.node("Concat", sizes, {"axis": 0}, name=f"{name}.shape")
    expand = ir.node("Expand", [number, shape.outputs[0]], name=f"{name}.expand")
    first = model.graph[0]
    for node, label in ((count, "count"), (shape, "shape"), (expand, "held.value")):
        node.outputs[0].name = f"{name}.{label}"
        model.graph.insert_before(first, node)
    expand.outputs[0].type = value.type
    value.replace_all_uses_with(expand.outputs[0])
