"""The list of places that do not keep a rule of the architecture yet: `known_violations.txt`, one `rule: place` a line.

`python -m tests.support.known_violations` removes the lines of the list that no longer hold.  It adds none.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from statistics import median

from tests.support import code_measures as measures
from tests.support.import_graph import arrows, backward, circles

LIST = Path(__file__).with_suffix(".txt")
FUNCTION_LINES = 40
FILE_LINES = 350
MEDIAN_LINES = 8
ARGUMENTS = 8
NAME_LETTERS = 60
FIELDS = 4
"""The most fields of a record that may be given by position."""

PUBLIC = {"ttac/pipeline.py::compile_model"}
"""`ttac.compile` takes each option of a compile as an argument."""


RULES = (
    "backward import",
    "circle",
    "function lines",
    "file lines",
    "arguments",
    "file name twice",
    "test name",
    "positional record",
)


@cache
def violations() -> dict[str, list[str]]:
    """Rule -> the places that do not keep it."""
    found, package, tests = arrows(), measures.sources(), measures.tests()
    return {
        "backward import": sorted({str(arrow) for arrow in backward(found)}),
        "circle": [" ".join(group) for group in circles(found)],
        "function lines": above(FUNCTION_LINES, measures.function_lines([*package, *tests])),
        "file lines": above(FILE_LINES, measures.file_lines([*package, *tests])),
        "arguments": above(ARGUMENTS, measures.function_arguments([*package, *tests])),
        "file name twice": measures.repeated_names(),
        "test name": above(NAME_LETTERS, measures.test_names()),
        "positional record": above(FIELDS, measures.positional_records()),
    }


def above(bound: int, found: list[measures.Measured]) -> list[str]:
    return sorted({one.place for one in found if one.size > bound and one.place not in PUBLIC})


def median_function_lines() -> float:
    return median(one.size for one in measures.function_lines(measures.sources()))


def known(rule: str) -> list[str]:
    """The places that the list excuses from `rule`."""
    return [place for name, place in lines() if name == rule]


def lines() -> list[tuple[str, str]]:
    split = (line.partition(": ") for line in LIST.read_text(encoding="utf-8").splitlines() if line)
    return [(rule, place) for rule, _, place in split]


def main() -> None:
    found = violations()
    kept = [(rule, place) for rule, place in lines() if place in found[rule]]
    LIST.write_text("".join(f"{rule}: {place}\n" for rule, place in kept), encoding="utf-8")


if __name__ == "__main__":
    main()
