"""The memory plan for people: the table of `ttac inspect`, and the picture of `--svg`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.conftest import Run
from tests.support import tiny_bundles as tiny
from ttac.cli.bundle_summary import memory_table, plan_table
from ttac.reports.plan_picture import COLOURS, layers_of, plan_picture

SVG = "{http://www.w3.org/2000/svg}"


def row(layer: str, value: str, how: str, kept: int, dense: int, keep_ratio: float = 1.0) -> dict[str, Any]:
    return {
        "layer": layer,
        "value": value,
        "how": how,
        "bytes": kept,
        "dense": dense,
        "because": "!",
        "keep_ratio": keep_ratio,
    }


PLAN = [
    row("conv1", "getitem", "blocks", 300_000, 1_000_000),
    row("bn1", "bn1.moments", "dense", 64, 64),
    row("relu", "relu.positive", "bits", 31_250, 250_000),
    row("conv1", "getitem.mask", "recompute", 0, 250_000),
    row("bn1", "bn1.rstd", "dense", 64, 64),
    row("", "old<&>", "int8", 100_000, 400_000),
]


def test_small_values_share_a_line_and_the_last_line_is_the_sum() -> None:
    table = plan_table(PLAN)
    assert [(line["layer"], line["bytes"]) for line in table] == [
        ("conv1", 300_000), ("relu", 31_250), ("conv1", 0), ("-", 100_000), ("2 small values", 128), ("all", 431_378)
    ]  # fmt: skip
    assert table[-1]["dense"] == sum(row["dense"] for row in PLAN) and "keep_ratio" not in table[0]


def test_a_keep_ratio_gets_a_column() -> None:
    assert plan_table([row("a", "x", "sparse", 9_000, 30_000, keep_ratio=0.3)])[0]["keep_ratio"] == 0.3
    assert plan_table([]) == []


def test_planned_beside_measured() -> None:
    rows = memory_table(
        {"residuals": 2048, "peak": 1024, "batch": 8}, {"peak": 1536, "loaded": 512, "seconds": 0.5, "steps": 3}
    )
    assert rows == [
        {"of": "residuals", "planned": "2.00 KiB", "measured": "-"},
        {"of": "peak", "planned": "1.00 KiB", "measured": "1.50 KiB"},
        {"of": "loaded", "planned": "-", "measured": "512 B"},
    ]


def test_layers_add_up_and_small_ones_come_together() -> None:
    first, *others = layers_of(PLAN)
    assert (first.name, first.kept, first.dense) == ("conv1", {"blocks": 300_000}, 1_250_000)
    assert [layer.name for layer in others] == ["relu", "old<&>", "bn1"]
    many = [row(f"l{i}", f"v{i}", "dense", 10, 10) for i in range(5)]
    assert [layer.name for layer in layers_of([*PLAN, *many])][-1] == "6 small layers"


def test_widths_are_proportional_to_bytes() -> None:
    root = ElementTree.fromstring(plan_picture(PLAN, "a <title> & more"))
    bars = [r for r in root.iter(f"{SVG}rect") if float(r.attrib["y"]) > 40]
    widths = {(r.attrib["class"], r.attrib["y"]): float(r.attrib["width"]) for r in bars}
    (top,) = [width for (name, _), width in widths.items() if name == "how-blocks"]
    (saved, *_) = [width for (name, _), width in widths.items() if name == "saved"]
    assert top / saved == pytest.approx(300_000 / 950_000, rel=1e-3)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "a <title> & more" in texts and "old<&>" in texts and "293 KiB of 1.19 MiB" in texts


def test_every_codec_has_a_colour_and_both_pages_theirs() -> None:
    from ttac.passes.plan.codecs import CODECS

    assert set(CODECS) <= set(COLOURS)
    style = ElementTree.fromstring(plan_picture(PLAN, "t")).find(f"{SVG}style")
    assert style is not None and style.text is not None
    light, dark = style.text.split("@media")
    assert COLOURS["bits"][0] in light and COLOURS["bits"][1] in dark and "http" not in style.text


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tiny.trained(tmp_path / "b")
    (folder / "report.json").write_text(json.dumps({"plan": PLAN}))
    tiny.reseal(folder)
    return folder


def test_the_picture_on_the_command_line(run: Run, bundle: Path) -> None:
    seen = run("inspect", str(bundle), "--plan", "--svg", "plan.svg")
    assert seen.code == 0 and "plan drawn: plan.svg" in seen.err and "2 small values" in seen.out
    assert ElementTree.parse(bundle.parent / "plan.svg").getroot().tag == f"{SVG}svg"
    assert json.loads(run("inspect", str(bundle), "--json").out)["report"]["plan"] == PLAN


def test_a_file_without_a_plan_is_refused(run: Run, bundle: Path) -> None:
    seen = run("inspect", str(bundle / "forward.onnx"), "--svg", "plan.svg")
    assert (seen.code, seen.err.splitlines()[0]) == (2, "error: only a bundle has a plan")
    tiny.ema(bundle.parent / "ema")
    seen = run("inspect", "ema", "--svg", "plan.svg")
    assert seen.code == 2 and "keeps nothing for a backward" in seen.err and not (bundle.parent / "plan.svg").exists()
