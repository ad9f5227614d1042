"""The rules of the house: limits on files, functions, names and records, and the places that break a rule."""

from __future__ import annotations

from functools import cache
from statistics import median

from tests.support import code_measures as measures
from tests.support.import_graph import arrows, backward, circles

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
    "backward import", "circle", "function lines", "file lines", "arguments", "file name twice", "test name",
    "positional record",
)  # fmt: skip
"""The name of each rule, in the order of `violations`."""


@cache
def violations() -> dict[str, list[str]]:
    """Return the places that break each rule, by the name of the rule."""
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
