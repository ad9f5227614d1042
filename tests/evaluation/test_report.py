"""The HTML report: one file that loads nothing else, and that a browser draws in its light and dark form."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttac.errors import RuntimeMissingError, UnsupportedError
from ttac.evaluation.cells import Cell, Subject
from ttac.evaluation.evaluation_result import Evaluation, MissingCell
from ttac.evaluation.metrics import BINS, packed
from ttac.evaluation.protocols import Order
from ttac.evaluation.tables import Table
from ttac.evaluation.verdict import verdict

HOSTILE = "<script>alert(1)</script> $x^$"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1200,3200"
).split()
ABOUT = {
    "date": "2001-02-03",
    "machine": "Linux x86_64, 4 cores of a processor",
    "packages": "ttac 0.1.0, onnxruntime 1.19.2",
    "threads": "0",
    "command": f"ttac eval {HOSTILE} --methods source,tent,surgeon",
}
PLAN = [
    {"value": f"layer{i}.conv", "how": how, "bytes": kept, "dense": 2**20, "because": ""}
    for i, (how, kept) in enumerate([("dense", 2**20), ("sparse", 2**19), ("recompute", 0), ("wondrous", 2**18)])
]


def result(method: str, protocol: str, error: float, labelled: bool = True) -> dict[str, Any]:
    """A result with made-up figures: two shifts of 64 samples, two windows each."""
    shifts = ["fog", HOSTILE]
    wrong = round(64 * error)
    bins = [[0, 0.0, 0]] * (BINS - 2) + [[32, 29.0, 32 - wrong // 2], [32, 31.5, 32 - (wrong - wrong // 2)]]
    stats = {"kept": 0.4, "kept.conv1": 0.2, "kept.conv2": 0.9} if method == "surgeon" else {}
    window = {"samples": 32, "counted": 32, "wrong": wrong // 2 if labelled else None, "entropy": 0.5, "stats": stats}
    part = {
        "samples": 64,
        "counted": 64,
        "wrong": wrong if labelled else None,
        "entropy": 0.5,
        "seconds": 0.1,
        "bins": bins if labelled else None,
        "predictions": packed(np.zeros(64)),
    }
    cell = {"protocol": protocol, "order": "shuffled", "batch": 32, "seed": 0, "shifts": [[name, 5] for name in shifts]}
    return {
        "cell": cell,
        "figure": "error",
        "model": HOSTILE,
        "method": method,
        "memory": {"measured": {"peak": 2**20, "loaded": 2**21}, "planned": {"residuals": 2**19}},
        "parts": [{**part, "shift": name, "severity": 5} for name in shifts],
        "trace": [{**window, "shift": shift} for shift in (0, 0, 1, 1)],
    }


def evaluation(labelled: bool = True) -> Evaluation:
    errors = {"source": 0.6, "tent": 0.3, "surgeon": 0.25}
    results = [
        result(method, protocol, error, labelled)
        for protocol in ("continual", "mixed")
        for method, error in errors.items()
    ]
    subject = Subject(model=HOSTILE, method="bn", batch=32, identity={}, bundle=Path("none"))
    cell = Cell(subject=subject, protocol="continual", shifts=(), order=Order(), data={})
    report = {"plan": PLAN, "planned": {"residuals": 2**20, "dense": 4 * 2**20}}
    reports = {(HOSTILE, method, 32): report for method in ("tent", "surgeon")}
    missing = [MissingCell(cell, UnsupportedError("no batch norm"))]
    return Evaluation(results=results, missing=missing, reports=reports, data="made-up images", about=ABOUT)


@pytest.fixture(scope="module")
def text() -> str:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    return evaluation().html()


class Parts(HTMLParser):
    """The references and elements of a page; raises AssertionError for an element that is not closed in order."""

    VOID = ("meta", "use", "path", "rect", "image", "line", "stop")

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data") and value:
                self.references.append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def parts(text: str) -> Parts:
    found = Parts()
    found.feed(text)
    return found


def test_nothing_is_fetched(text: str, parts: Parts) -> None:
    assert all(reference.startswith(("#", "data:image/")) for reference in parts.references)
    assert "default-src 'none'" in text and not re.search(r"@import|url\((?!#)", text)


def test_the_page_is_whole(parts: Parts) -> None:
    assert parts.open == [] and "script" not in parts.counts
    assert parts.counts["svg"] == 2 * (2 * (4 + 1) + 1), "bars, stream, costs, calibration, ratios; one shared plan"
    assert parts.counts["details"] == 2


def test_names_are_text_and_nothing_else(text: str) -> None:
    assert "<script" not in text and "&lt;script&gt;" in text and "$x^$" in text


def test_the_page_shows_names_sizes_and_reasons(text: str) -> None:
    for words in (
        "fog",
        "tent, surgeon",
        "Kept of each layer, surgeon",
        "conv2",
        "1.00 MiB of 4.00 MiB",
        "no batch norm",
    ):
        assert words in text
    assert re.search(r'<td class="best">25\.0</td>', text)


def table(means: dict[str, float | None], labelled: bool = True, **times: float) -> Table:
    """A table with the means, in one setting, and with milliseconds per sample."""
    totals = {"error": means, "entropy": means, "ms_per_sample": times}
    setting = {"model": "net", "protocol": "mixed", "order": "file", "batch": 8}
    return Table(setting=setting, methods=tuple(means), errors={}, totals=totals, labelled=labelled)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ([], "No method ran."),
        ([table({"source": None})], "No method has a figure."),
        ([table({"source": 0.6}, labelled=False)], "no labels, so the report compares entropy"),
        ([table({"bn": 0.4, "tent": 0.25})], "tent has the lowest mean error, 25.0 %."),
        (
            [table({"source": 0.6, "tent": 0.25}, source=2.0, tent=5.0)],
            "tent has the lowest mean error, 25.0 %, 35.0 points below the source model. A sample takes 2.5 times as long.",
        ),
        ([table({"tent": 0.6, "source": 0.6})], "No method is better than the source model: source has the lowest"),
        ([table({"source": 0.6, "tent": 0.2}), table({"source": 0.1, "tent": 0.2})], "tent in 1, source in 1."),
    ],
)
def test_the_verdict(tables: list[Table], words: str) -> None:
    assert words in verdict(tables)


def test_the_circumstances_are_on_the_page(text: str) -> None:
    for name in ("machine", "packages", "date"):
        assert ABOUT[name] in text
    assert "128 in a stream of 2 shifts" in text and "the engine&#39;s choice" in text


def test_the_line_joins_methods_that_none_beats() -> None:
    pytest.importorskip("matplotlib")
    from ttac.evaluation import plots

    assert plots._beats((1, 2), (1, 3)) and plots._beats((0, 2), (1, 2))
    assert not plots._beats((1, 2), (1, 2)) and not plots._beats((0, 4), (1, 3))


def test_each_of_many_methods_has_its_own_line() -> None:
    pytest.importorskip("matplotlib")
    from ttac.evaluation import plots

    styles = list(plots._styles(["source", *map(str, range(18))]))
    assert len({repr(style) for style in styles}) == 19


def test_every_colour_is_the_page_s(text: str) -> None:
    variables = set(re.findall(r"var\(--([a-z0-9]+)\)", text))
    assert {"ink", "muted", "grid", "best", "pale"} <= variables
    assert all(text.count(f"--{name}:") == 2 for name in variables), "light and dark"
    from ttac.evaluation.plots import VARIABLES

    assert not [colour for colour in VARIABLES if colour in text]


def test_the_same_evaluation_makes_the_same_page(text: str) -> None:
    assert evaluation().html() == text


def test_without_labels_there_is_entropy(parts: Parts) -> None:
    bare = evaluation(labelled=False).html()
    assert "no labels: entropy in nats" in bare and "Calibration" not in bare and "Entropy over the stream" in bare


def test_a_package_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ttac.evaluation import html_report

    monkeypatch.setattr(html_report, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissingError) as caught:
        evaluation().write_html(tmp_path / "x.html")
    assert caught.value.hint == "`pip install 'ttac[eval]'`" and not list(tmp_path.iterdir())


def screenshot(page: Path, folder: Path, dark: bool) -> np.ndarray:
    """uint8 [H, W, 3] as Chromium draws it."""
    from PIL import Image

    assert CHROMIUM is not None
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    target = [f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'x.png'}", page.as_uri()]
    done = subprocess.run(
        [CHROMIUM, *FLAGS, *scheme, *target], capture_output=True, text=True, timeout=120, check=False
    )
    assert (folder / "x.png").is_file(), done.stderr
    with Image.open(folder / "x.png") as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_chromium_draws_it(dark: bool, text: str, tmp_path: Path) -> None:
    """The page's background, text that contrasts with it, and the plots in the colours of the scheme."""
    (tmp_path / "x.html").write_text(text, encoding="utf-8")
    pixels = screenshot(tmp_path / "x.html", tmp_path, dark).astype(int)
    background = pixels[5, 5]
    assert tuple(background) == ((0x19, 0x19, 0x18) if dark else (0xFC, 0xFC, 0xFB))
    best = np.array((0x6D, 0xB3, 0xF2) if dark else (0x0B, 0x62, 0xA8))
    bars = (np.abs(pixels - best).max(axis=2) <= 2).sum()
    assert bars > 3000, "the bars of the best method"
    ink = np.array((0xEC, 0xEB, 0xE6) if dark else (0x1C, 0x1C, 0x1A))
    assert (np.abs(pixels - ink).max(axis=2) <= 12).sum() > 500, "text"
    rows = np.abs(pixels - background).max(axis=(1, 2)) > 8
    assert rows.sum() > 1500, "the page is drawn far down"
    assert not (np.abs(pixels[:, -15:] - background).max(axis=2) > 8).any(), "nothing runs out at the right"
