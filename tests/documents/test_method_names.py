"""Only its own place names a method: neither compiler nor device knows a method, or an option that one method declares."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ttac import methods

ROOT = Path(__file__).resolve().parents[2]
WORDS_TOO = ("bn", "source")
"""Methods whose names are words of the compiler too: only their spelling as a method counts."""
PLACES = ("passes", "runtime", "ttac/reports", "ttac/samples", "ttac/targets")
FILES = [
    *sorted((ROOT / "ttac").glob("*.py")),
    *(path for place in PLACES for path in sorted((ROOT / place).rglob("*.py"))),
]
NAMES = "|".join(name for name in methods.names() if name not in WORDS_TOO)
NAMED = re.compile(rf"\b({NAMES})\b", flags=re.IGNORECASE)
SPELLED = re.compile(
    rf"--methods? ({'|'.join(WORDS_TOO)})\b|methods?[.=( ]+(find\()?['\"`]({'|'.join(WORDS_TOO)})['\"`]"
)


def own_options() -> list[str]:
    """The names of the options that one method alone declares."""
    found = Counter(option.name for name in methods.names() for option in methods.find(name).options)
    return sorted(name for name, count in found.items() if count == 1)


OPTIONS = own_options()
SET = re.compile(rf"--set ({'|'.join(OPTIONS)})\b|`({'|'.join(OPTIONS)})[=@]")
AMBIGUOUS = ("weight", "symmetric")
"""Options that are words of the compiler too: role of a tensor, and form of an engine's calibration."""


def lines_with(pattern: re.Pattern[str], path: Path) -> list[str]:
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return [f"{path.relative_to(ROOT)}:{number}: {line.strip()}" for number, line in lines if pattern.search(line)]


@pytest.mark.parametrize("pattern", [NAMED, SPELLED], ids=["names", "spellings"])
def test_no_file_names_a_method(pattern: re.Pattern[str]) -> None:
    assert [line for path in FILES for line in lines_with(pattern, path)] == []


def test_no_file_names_an_option_of_one_method() -> None:
    assert len(OPTIONS) > 10
    assert [line for path in FILES for line in lines_with(SET, path)] == []
    own = set(OPTIONS) - set(AMBIGUOUS)
    assert [(str(path.relative_to(ROOT)), text) for path in FILES for text in strings(path) if text in own] == []


def strings(path: Path) -> Iterator[str]:
    """Every text of a module that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value
