"""The outputs that a loss reads, as `--logits` names them: one, or several with weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ttac.errors import UnsupportedError, UsageError
from ttac.passes.differentiate.heads import Head, decide_head
from ttac.passes.graph.shapes import dims
from ttac.runtime.records import BATCH_AXIS
from ttac.suggest import did_you_mean


@dataclass(frozen=True)
class FurtherOutput:
    """An output that the loss reads in addition to the first; `weight` multiplies its mean."""

    name: str
    head: Head
    weight: float


def learned_outputs(text: str | None) -> dict[str, float]:
    """Return the names in a text such as `scores` or `a=1,b=0.5` with their weights, 1 by default.

    Raises UsageError for a weight that is no positive number, and for a name that occurs twice.
    """
    weights: dict[str, float] = {}
    for part in (text or "").split(",") if text else ():
        name, _, weight = part.strip().partition("=")
        try:
            value = float(weight or 1)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf or not name or name in weights:
            problem = f"`{part}` names no output with a weight"
            raise UsageError(problem, where=f"`--logits {text}`", hint="for example `--logits scores=1,mask=0.5`")
        weights[name] = value
    return weights


def main_output(text: str | None) -> str | None:
    """Return the name of the first output that the loss reads; None without a text."""
    return next(iter(learned_outputs(text)), None)


def further_outputs(text: str | None, model: ir.Model, outputs: Sequence[str]) -> tuple[FurtherOutput, ...]:
    """Return the outputs of the normal form `model` that the loss reads in addition to the first.

    Raises UsageError for a name that is none of the `outputs`, UnsupportedError for one that is no prediction.
    """
    named = {str(value.name): value for value in model.graph.outputs}
    found = []
    for name, weight in list(learned_outputs(text).items())[1:]:
        where = f"`--logits {text}`"
        if name not in outputs:
            raise UsageError(f"the model has no output `{name}`", where=where, hint=did_you_mean(name, outputs))
        value = named[name]
        if value.dtype != ir.DataType.FLOAT or dims(value)[:1] != [BATCH_AXIS]:
            problem = f"the output `{name}` {value.shape} holds no numbers with the samples on the first axis"
            raise UnsupportedError(problem, where=where, hint="name it first, or leave it out")
        found.append(FurtherOutput(name, decide_head(value), weight))
    return tuple(found)
