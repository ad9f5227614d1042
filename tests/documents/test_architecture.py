"""The rules of the house: the direction of imports, and the sizes of files, functions, names and records.

`tests/support/known_violations.txt` lists the places that do not keep a rule yet.  The list only gets shorter.
"""

from __future__ import annotations

import pytest

from tests.support import known_violations as house
from tests.support.import_graph import ROOMS, Arrow, backward, circles, files, room

HINT = "`python -m tests.support.known_violations` removes the lines that no longer hold"


@pytest.mark.parametrize("rule", house.RULES)
def test_no_place_breaks_a_rule(rule: str) -> None:
    assert sorted(set(house.violations()[rule]) - set(house.known(rule))) == []


@pytest.mark.parametrize("rule", house.RULES)
def test_the_list_of_known_violations_is_short(rule: str) -> None:
    assert sorted(set(house.known(rule)) - set(house.violations()[rule])) == [], HINT


def test_the_list_names_rules_that_exist() -> None:
    assert {rule for rule, _ in house.lines()} <= set(house.RULES) == set(house.violations())


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
