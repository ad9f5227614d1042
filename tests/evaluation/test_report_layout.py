"""The report at the widths of a desk and of a phone, drawn by Chromium and compared with the committed pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluation.test_report import ABOUT, HOSTILE, evaluation
from tests.support import chromium
from tests.support.pictures import assert_looks_like
from ttac.evaluation.evaluation_result import Evaluation

PICTURES = Path(__file__).parent / "pictures"
WIDTHS, HEIGHT = (1280, 390), 900
SMALLEST = 9.0
"""Fewest pixels of a readable line of text."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not chromium.found(), reason="install chromium")]


def drawn() -> Evaluation:
    """One setting, with plain names and with times that differ."""
    made = evaluation()
    text = json.dumps([result for result in made.results if result["cell"]["protocol"] == "continual"])
    results = json.loads(text.replace(json.dumps(HOSTILE)[1:-1], "gaussian_noise"))
    for result, seconds in zip(results, (0.1, 0.24, 0.31), strict=True):
        result["parts"] = [{**part, "seconds": seconds} for part in result["parts"]]
        result["trace"][1]["wrong"] //= 2
        result["trace"][3]["wrong"] = result["trace"][3]["wrong"] * 3 // 2
    return replace(
        made, results=results, missing=(), about={**ABOUT, "command": "ttac eval net.onnx --data images.npz"}
    )


@pytest.fixture(scope="module", params=WIDTHS)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("report")
    drawn().write_html(folder / "report.html")
    with chromium.served({"report": folder}) as address, chromium.page(request.param, HEIGHT) as opened:
        opened.open(f"{address}/report/report.html")
        opened.wait("document.readyState === 'complete' && document.querySelectorAll('svg').length")
        yield opened


def test_nothing_is_wider_than_the_window(page: chromium.Page) -> None:
    assert page.value("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_verdict_and_the_facts_are_on_the_first_screen(page: chromium.Page) -> None:
    for part in (".verdict", ".facts"):
        assert page.value(f"document.querySelector('{part}').getBoundingClientRect().bottom < window.innerHeight")
    assert page.value("getComputedStyle(document.querySelector('.verdict')).fontSize.replace('px', '') >= 16")


def test_the_text_of_every_plot_is_readable(page: chromium.Page) -> None:
    heights = page.value(
        "[...document.querySelectorAll('details[open] svg text')]"
        ".filter(text => text.textContent.trim() && text.checkVisibility())"
        ".map(text => text.getBoundingClientRect().height)"
    )
    assert len(heights) > 40 and min(heights) >= SMALLEST


def test_no_plot_needs_scrolling(page: chromium.Page) -> None:
    assert page.value(
        "[...document.querySelectorAll('details[open] figure')].every(each => each.scrollWidth <= each.clientWidth + 1)"
    )


def test_the_page_looks_like_the_committed_picture(page: chromium.Page, tmp_path: Path) -> None:
    width = page.value("window.innerWidth")
    size = {"width": width, "deviceScaleFactor": 1, "mobile": False}
    page.call("Emulation.setDeviceMetricsOverride", **size, height=page.value("document.body.scrollHeight"))
    page.value("window.scrollTo(0, 0)")
    page.screenshot(tmp_path / "now.png")
    page.call("Emulation.setDeviceMetricsOverride", **size, height=HEIGHT)
    assert_looks_like(tmp_path / "now.png", PICTURES / f"report-{width}.png")
