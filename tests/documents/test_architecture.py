"""The rules of the house: the direction of imports, and the sizes of files, functions, names and records."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import house_rules as house
from tests.support.import_graph import ROOMS, Arrow, backward, circles, files, room


@pytest.mark.parametrize("rule", house.RULES)
def test_no_place_breaks_a_rule(rule: str) -> None:
    assert house.violations()[rule] == []


def test_every_rule_has_a_name() -> None:
    assert list(house.violations()) == list(house.RULES)


def test_the_median_function_is_short() -> None:
    assert house.median_function_lines() <= house.MEDIAN_LINES


def test_every_room_has_modules() -> None:
    assert {room(module) for module in files()} == set(range(len(ROOMS)))


def test_an_arrow_to_a_later_room_is_found() -> None:
    back = Arrow("ttac.passes.load.model_file", "ttac.pipeline")
    assert backward([back, Arrow("ttac.pipeline", "ttac.errors"), Arrow("ttac", "ttac.cli")]) == [back]
    assert backward([Arrow("ttac.cli.running", "ttac")]) == [Arrow("ttac.cli.running", "ttac")]


def test_a_circle_is_found() -> None:
    there, back = Arrow("ttac.bake", "ttac.sites"), Arrow("ttac.sites", "ttac.bake")
    assert circles([there, back]) == [["ttac.bake", "ttac.sites"]]
    assert circles([there, Arrow("ttac.sites", "ttac.bake", typing=True)]) == []


def test_every_package_is_installed() -> None:
    """A folder that the list lacks is absent from an installed ttac."""
    root, listed = Path(__file__).resolve().parents[2], set[str]()
    for line in (root / "pyproject.toml").read_text(encoding="utf-8").splitlines():
        listed |= {line.strip(' ",')} if line.startswith('  "ttac') else set()
    for folder, package in (("ttac", "ttac"), ("passes", "ttac.passes"), ("runtime", "ttac.runtime")):
        for file in (root / folder).rglob("__init__.py"):
            assert ".".join([package, *file.parent.relative_to(root / folder).parts]) in listed
