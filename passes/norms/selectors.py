"""Which of the norms adapt: the grammar of `--train SELECTOR`.

A selector is a list with commas of any of these; a site that fits one of them is taken:

    norms                    every norm; `all` takes them too (`ttac.passes.adapt.train_weights`)
    layer3, layer4.*.bn1     a module's name, or a pattern of norms' names
    first:4, last:30%        so many of them, or that share, from the input's or the output's end
    every:3                  the first one and every third from there
    auto:6, auto:30%         those whose statistics drift farthest when the input is disturbed (`drift`)
    auto:6@20%               the same, while the norms taken see at most that share of all norms' values

A norm's work is to read and write the values it sees, so their share is its share of the latency that adapting costs.
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
"""The drift of each site, in their order."""

WORDS = re.compile(r"(first|last|every|auto):(.*)", re.DOTALL)
FORMS = "write `first:4`, `last:30%`, `every:3`, `auto:6` or `auto:6@20%`"


def selected_sites(sites: Sequence[NormSite], selector: str, ranking: Ranking) -> list[NormSite]:
    """The sites that `selector` names, in the order given, which is the graph's.

    Args:
        ranking: asked once, and only for `auto`.

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
    """Whether the selector has to know how far the sites drift."""
    return any(part.strip().startswith("auto:") for part in selector.split(","))


def _counted(sites: Sequence[NormSite], word: str, text: str, ranking: Ranking, where: str) -> Sequence[int]:
    count, at, budget = text.partition("@")
    if at and word != "auto":
        raise UsageError(f"`{word}` takes no share of the values", where=where, hint=FORMS)
    if word == "every":
        return range(0, len(sites), _whole(count, where))
    number = min(_number(count, len(sites), where), len(sites))
    if word == "first":
        return range(number)
    if word == "last":
        return range(len(sites) - number, len(sites))
    share = _share(budget, where) if at else 1.0
    return _farthest(sites, ranking(sites), number, share)


def _farthest(sites: Sequence[NormSite], drifts: Sequence[float], number: int, share: float) -> list[int]:
    """The sites that drift most, at most `number`, passing over those that would exceed the share of the values."""
    values = [site.channels * site.spatial for site in sites]
    room = share * sum(values)
    taken: list[int] = []
    for index in sorted(range(len(sites)), key=lambda index: (-drifts[index], index)):
        if len(taken) < number and values[index] <= room:
            taken.append(index)
            room -= values[index]
    return taken


def _number(text: str, total: int, where: str) -> int:
    """A count, or a share of `total` rounded up."""
    return math.ceil(_share(text, where) * total - 1e-9) if text.endswith("%") else _whole(text, where)


def _whole(text: str, where: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise UsageError(f"`{text}` is not a count of norms", where=where, hint=FORMS)
    return int(text)


def _share(text: str, where: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else math.nan
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UsageError(f"`{text}` is not a share above 0 % and up to 100 %", where=where, hint=FORMS)
    return share


def sites_by_name(sites: Sequence[NormSite], selector: str = "norms") -> tuple[NormSite, ...]:
    """The sites that `--train` names: "norms" for all, or patterns and module names, `layer3,layer4.*.bn1`.

    Raises UsageError for a pattern that fits no site, naming the nearest.
    """
    if selector == "norms":
        return tuple(sites)
    patterns = [pattern.strip() for pattern in selector.split(",") if pattern.strip()]
    names = [site.name for site in sites]
    for pattern in patterns or [selector]:
        if not any(_fits(name, pattern) for name in names):
            near = did_you_mean(pattern, dict.fromkeys([*names, *_modules(names)]))
            raise UsageError(f"`{pattern}` fits no norm site", where=f"`--train {selector}`", hint=near)
    return tuple(site for site in sites if any(_fits(site.name, pattern) for pattern in patterns))


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(pattern + ".")


def _modules(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:count]) for count in range(1, len(parts)))
