"""Which norms adapt: the grammar of `--train SELECTOR`.

A selector is a list of these forms, separated by commas. A site that fits one form is taken:

    norms                    every norm; `all` takes them too (`ttac.passes.adapt.train_weights`)
    layer3, layer4.*.bn1     a module's name, or a pattern of norms' names
    first:4, last:30%        a number or a percentage of the norms, from the input's or the output's end
    every:3                  the first norm and every third from there
    auto:6, auto:30%         the norms whose statistics drift farthest when the input is disturbed (`drift`)
    auto:6@20%               the same, while the taken norms see at most 20 % of all norms' values

A norm reads and writes the values it sees. So their value fraction is its part of the latency that adapting costs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from ttac.errors import UsageError
from ttac.passes.norms.norm_sites import NormSite
from ttac.suggest import did_you_mean

Ranking = Callable[[Sequence[NormSite]], Sequence[float]]
"""Function that returns the drift of each site, in the order of the sites."""

WORDS = re.compile(r"(first|last|every|auto):(.*)", re.DOTALL)
"""Form of a selector that counts norms."""
FORMS = "write `first:4`, `last:30%`, `every:3`, `auto:6` or `auto:6@20%`"
"""Hint: the forms that count norms."""


def selected_sites(sites: Sequence[NormSite], selector: str, ranking: Ranking) -> list[NormSite]:
    """Return the sites that `selector` names, in the order of `sites`, which is the graph's.

    Args:
        ranking: called once, and only for `auto`.

    Raises UsageError for a number that fits nothing and for a name that fits no site.
    """
    taken: set[int] = set()
    selector = "norms" if selector == "all" else selector
    for part in [part.strip() for part in selector.split(",") if part.strip()] or [selector]:
        words = WORDS.fullmatch(part)
        if words is None:
            fitting = {id(site) for site in sites_by_name(sites, part)}
            taken |= {index for index, site in enumerate(sites) if id(site) in fitting}
        else:
            taken |= set(_counted(sites, words[1], words[2], ranking, f"`--train {part}`"))
    return [site for index, site in enumerate(sites) if index in taken]


def wants_ranking(selector: str) -> bool:
    """Return whether the selector needs the drifts of the sites."""
    return any(part.strip().startswith("auto:") for part in selector.split(","))


def _counted(sites: Sequence[NormSite], word: str, text: str, ranking: Ranking, where: str) -> Sequence[int]:
    count, at, budget = text.partition("@")
    if at and word != "auto":
        raise UsageError(f"`{word}` takes no fraction of the values", where=where, hint=FORMS)
    if word == "every":
        return range(0, len(sites), _whole(count, where))
    number = min(_number(count, len(sites), where), len(sites))
    if word == "first":
        return range(number)
    if word == "last":
        return range(len(sites) - number, len(sites))
    fraction = _fraction(budget, where) if at else 1.0
    return _farthest(sites, ranking(sites), number, fraction)


def _farthest(sites: Sequence[NormSite], drifts: Sequence[float], number: int, fraction: float) -> list[int]:
    """Return the sites that drift most, at most `number`, without sites that would exceed the value fraction."""
    values = [site.channels * site.spatial for site in sites]
    left = fraction * sum(values)
    taken: list[int] = []
    for index in sorted(range(len(sites)), key=lambda index: (-drifts[index], index)):
        if len(taken) < number and values[index] <= left:
            taken.append(index)
            left -= values[index]
    return taken


def _number(text: str, total: int, where: str) -> int:
    """Return a count, or a percentage of `total` rounded up."""
    return math.ceil(_fraction(text, where) * total - 1e-9) if text.endswith("%") else _whole(text, where)


def _whole(text: str, where: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise UsageError(f"`{text}` is not a count of norms", where=where, hint=FORMS)
    return int(text)


def _fraction(text: str, where: str) -> float:
    try:
        fraction = float(text.removesuffix("%")) / 100 if text.endswith("%") else math.nan
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise UsageError(f"`{text}` is not a percentage above 0 % and up to 100 %", where=where, hint=FORMS)
    return fraction


def sites_by_name(sites: Sequence[NormSite], selector: str = "norms") -> tuple[NormSite, ...]:
    """Return the sites that `--train` names: "norms" for all, or patterns and module names, `layer3,layer4.*.bn1`.

    Raises UsageError for a pattern that fits no site, with the nearest name as a hint.
    """
    if selector == "norms":
        return tuple(sites)
    patterns = [pattern.strip() for pattern in selector.split(",") if pattern.strip()]
    names = [site.name for site in sites]
    for pattern in patterns or [selector]:
        if not any(_fits(name, pattern) for name in names):
            hint = did_you_mean(pattern, dict.fromkeys([*names, *_modules(names)]))
            raise UsageError(f"`{pattern}` fits no norm site", where=f"`--train {selector}`", hint=hint)
    return tuple(site for site in sites if any(_fits(site.name, pattern) for pattern in patterns))


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(pattern + ".")


def _modules(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:count]) for count in range(1, len(parts)))
