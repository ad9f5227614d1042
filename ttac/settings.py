"""Hyperparameters: the settings of a user, checked against the options that a method declares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from ttac.errors import UsageError
from ttac.spec import Method, Option
from ttac.suggest import did_you_mean

Setting = bool | int | float | str

AT = "@"
"""Between an option and the norms that a value of it is for."""

QUANTIZATION = (
    Option(
        "calibration",
        "minmax",
        "range of an activation from its values on the calibration data",
        choices=("minmax", "percentile", "entropy"),
    ),
    Option(
        "percentile", 99.99, "percent of the values inside a range, with `calibration=percentile`", low=50, high=100
    ),
)
"""Options of `--quantize int8`, set with `--set` beside the method's own."""

WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def split_assignments(texts: Iterable[str]) -> dict[str, str]:
    """`["lr=0.01", "optimizer=sgd"]` -> `{"lr": "0.01", "optimizer": "sgd"}`.

    Raises UsageError when a text has no `=`, no name, or sets a name twice.
    """
    settings: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name, where = name.strip(), f"`--set {text}`"
        if not equals or not name:
            raise UsageError("a setting is written `name=value`", where=where, hint="for example `--set lr=0.001`")
        if name in settings:
            raise UsageError(f"`{name}` is set twice", where=where, hint="keep one of them")
        settings[name] = value.strip()
    return settings


def resolve(method: Method, stated: Mapping[str, Any] | None = None, quantize: str | None = None) -> dict[str, Setting]:
    """Every option of `method`, and with `quantize` its options, with the user's value or the default.

    A value may be text (from the command line) or typed (from Python).
    Raises UsageError for a name the method does not have, or a value of the wrong type or out of bounds.
    """
    stated = dict(stated or {})
    options = {option.name: option for option in (*method.options, *(QUANTIZATION if quantize else ()))}
    for name in stated:
        option = options.get(option_of(name))
        if option is None or (name != option.name and not option.per_site):
            hint = did_you_mean(name, options) + f" (`ttac methods {method.name}` lists them)"
            raise UsageError(f"method `{method.name}` has no option `{name}`", where="`--set`", hint=hint)
    defaulted = {name: value_of(option, stated.get(name, option.default)) for name, option in options.items()}
    return {**defaulted, **{name: value_of(options[option_of(name)], value) for name, value in stated.items()}}


def is_guarded(settings: Mapping[str, Any]) -> bool:
    """Whether the settings turn the guard on (`ttac.passes.step_graphs.guard`)."""
    return settings.get("guard") == "on"


def option_of(name: str) -> str:
    """The option that a setting sets: `lr` for `lr` and for `lr@layer1`."""
    return name.partition(AT)[0]


def value_at(settings: Mapping[str, Any], option: str, site: str) -> Any:
    """The value of `option` at the norm `site`: of the last `option@PATTERN` that fits, else of the option.

    A pattern fits a norm's name, with `*` and `?`, or is a module that it is in, as in `--train`.
    """
    fitting = [name for name in settings if name.startswith(option + AT) and _fits(site, name)]
    return settings[fitting[-1] if fitting else option]


def refuse_unused(settings: Mapping[str, Any], sites: Iterable[str]) -> None:
    """Raise UsageError for a setting `option@PATTERN` that fits none of the norms `sites`."""
    sites = list(sites)
    for name in settings:
        if AT in name and not any(_fits(site, name) for site in sites):
            pattern = name.partition(AT)[2]
            hint = did_you_mean(pattern, sites) + " (`ttac inspect` lists the norms)"
            raise UsageError(f"`{pattern}` fits no norm that is adapted", where=f"`--set {name}`", hint=hint)


def _fits(site: str, name: str) -> bool:
    pattern = name.partition(AT)[2]
    return fnmatchcase(site, pattern) or site.startswith(pattern + ".")


def value_of(option: Option, value: Any) -> Setting:
    """`value` in the type of the option's default, within its bounds; raises UsageError otherwise."""
    typed = _typed(option, value)
    if typed is None:
        raise _wrong(option, value)
    if option.choices and typed not in option.choices:
        raise UsageError(
            f"`{value}` is not a choice of `{option.name}`",
            where=f"`--set {option.name}={value}`",
            hint=did_you_mean(str(value), option.choices),
        )
    if isinstance(typed, (int, float)) and not isinstance(typed, bool) and not _within(option, typed):
        raise _wrong(option, value)
    return typed


def describe(option: Option) -> str:
    """Values that the option accepts: `true or false`, `0 to 1`, `adam, sgd`."""
    if isinstance(option.default, bool):
        return "true or false"
    if option.choices:
        return ", ".join(option.choices)
    if isinstance(option.default, str):
        return "text"
    kind = "a whole number" if isinstance(option.default, int) else "a number"
    if option.low is not None and option.high is not None:
        return f"{kind} from {option.low:g} to {option.high:g}"
    if option.low is not None:
        return f"{kind}, at least {option.low:g}"
    if option.high is not None:
        return f"{kind}, at most {option.high:g}"
    return kind


def _typed(option: Option, value: Any) -> Setting | None:
    """`value` in the type of the default, None if the conversion is not exact."""
    if isinstance(option.default, bool):
        return value if isinstance(value, bool) else WORDS.get(str(value).lower())
    if isinstance(option.default, str):
        return value if isinstance(value, str) else None
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
        if isinstance(option.default, int):
            return int(number) if number.is_integer() else None
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _within(option: Option, value: float) -> bool:
    return (option.low is None or value >= option.low) and (option.high is None or value <= option.high)


def _wrong(option: Option, value: Any) -> UsageError:
    return UsageError(
        f"`{value}` does not fit option `{option.name}`",
        where=f"`--set {option.name}={value}`",
        hint=f"`{option.name}` is {describe(option)}; its default is `{show(option.default)}`",
    )


def show(value: Setting) -> str:
    """A setting as the command line would write it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
