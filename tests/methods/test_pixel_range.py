"""The range of pixels of the consistency: texts that are no range, and calibration images outside it."""

from __future__ import annotations

import pytest

from tests.support.consistency_case import pictures
from ttac.errors import UsageError
from ttac.passes.step_graphs.pixel_range import pixel_range, refuse_values_outside


@pytest.mark.parametrize(
    "text", ["", "dark", "0,0", "0,0,0,0", "nan", "inf,0,0", "0;0;0"], ids=lambda text: text or "nothing"
)
@pytest.mark.parametrize("name", ["black", "white"])
def test_a_pixel_that_is_none(name: str, text: str) -> None:
    with pytest.raises(UsageError, match="no value of a pixel") as caught:
        pixel_range({"black": "0", "white": "1", name: text}, 3)
    assert name in str(caught.value) and caught.value.hint


@pytest.mark.parametrize(("black", "white"), [("1", "0"), ("0", "0"), ("0,0,0", "1,0,1")])
def test_white_is_above_black(black: str, white: str) -> None:
    with pytest.raises(UsageError, match="not above"):
        pixel_range({"black": black, "white": white}, 3)


def test_calibration_images_outside_the_range_are_refused() -> None:
    x = pictures(3)
    refuse_values_outside(x, {"black": "0", "white": "1"})
    refuse_values_outside(x * 2 - 1, {"black": "-1", "white": "1,1,1"})
    for wrong in (x * 255, x - 0.5, (x - 0.45) / 0.22):
        with pytest.raises(UsageError, match="beyond black and white") as caught:
            refuse_values_outside(wrong, {"black": "0", "white": "1"})
        assert "black" in caught.value.hint
