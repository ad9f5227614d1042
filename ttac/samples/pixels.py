"""`--pixels`: how the user says that pixels become the model's input; the manifest keeps the same mapping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ttac.errors import UsageError
from ttac.suggest import did_you_mean

LAYOUTS = ("NCHW", "NHWC")
KEYS = ("mean", "std", "range", "layout")
KNOWN: dict[str, dict[str, Any]] = {"imagenet": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
"""Statements with a name: `imagenet` is torchvision's, used in the training of most ImageNet models."""
OPTION = "`--pixels`"
HINT = "for example `--pixels imagenet`, or `--pixels mean=0.5 --pixels std=0.5`; also `range=0,255`, `layout=NHWC`"


def resolve_pixels(pixels: str | Sequence[str] | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the stated keys among `KEYS` with checked values, or None if nothing is stated.

    Args:
        pixels: a name of `KNOWN`; or texts, each a name or `key=value` with commas between numbers; or a mapping.
            `range` holds the values that bytes 0 and 255 become.  Then `mean` is subtracted and `std` divides, each
            one number or one per channel.

    Raises UsageError for an unknown word, a text that is no number, a `std` that is not positive, or an empty range.
    """
    if isinstance(pixels, Mapping):
        stated = dict(pixels)
    else:
        stated = {}
        for text in [pixels] if isinstance(pixels, str) else pixels or ():
            stated |= _of_text(text)
    return {key: _checked(key, value) for key, value in stated.items()} or None


def _of_text(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if equals:
        return {key.strip(): value if key.strip() == "layout" else value.split(",")}
    if text not in KNOWN:
        hint = did_you_mean(text, KNOWN)
        hint = hint if hint.startswith("did you mean") else HINT
        raise UsageError(f"`{text}` is no statement about pixels", where=OPTION, hint=hint)
    return KNOWN[text]


def _checked(key: str, value: Any) -> Any:
    where = f"`--pixels {key}=...`"
    if key not in KEYS:
        raise UsageError(f"`{key}` is no key of `--pixels`", where=OPTION, hint=did_you_mean(key, KEYS))
    if key == "layout":
        if value not in LAYOUTS:
            raise UsageError(f"`{value}` is no layout", where=where, hint=f"it is {' or '.join(LAYOUTS)}")
        return value
    numbers = [_number(item, where) for item in (value if isinstance(value, (list, tuple)) else [value])]
    if key == "range" and not (len(numbers) == 2 and numbers[0] < numbers[1]):
        raise UsageError("a range is two numbers, the first below the second", where=where, hint="as `range=0,255`")
    if not numbers or (key == "std" and min(numbers) <= 0):
        raise UsageError("a standard deviation is above 0", where=where, hint=HINT)
    return numbers


def _number(item: Any, where: str) -> float:
    try:
        number = float(item)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"`{item}` is not a number", where=where, hint=HINT)
    return number


def black_and_white(stated: Mapping[str, Any]) -> tuple[str, str]:
    """Return a black and a white pixel of the model's input as settings: one number, or one per channel with commas."""
    mean, std = stated.get("mean") or [0.0], stated.get("std") or [1.0]
    count = max(len(mean), len(std))
    mean, std = (list(part) * (count if len(part) == 1 else 1) for part in (mean, std))
    black, white = (
        ",".join(f"{(end - m) / s:.7g}" for m, s in zip(mean, std, strict=True))
        for end in stated.get("range") or (0.0, 1.0)
    )
    return black, white
