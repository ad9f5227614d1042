"""`ttac demo`: its table, its bars and its numbers, on a small part of the shipped images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Run
from ttac import demo
from ttac.cli import demonstrating, main
from ttac.cli.terminal import Terminal
from ttac.demo import show
from ttac.samples.images import Stream

COMPARISON = show.DemoErrors(
    errors={
        "clean": {"source": 0.1, "bn": 0.125, "tent": 0.125},
        "fog": {"source": 0.8, "bn": 0.4, "tent": 0.2},
        "gaussian_noise": {"source": 0.6, "bn": 0.2, "tent": 0.1},
    },
    milliseconds={"source": 0.1, "bn": 0.2, "tent": 0.75},
    samples=192,
    seconds=1.25,
)


def test_the_table_and_the_bars(capsys: pytest.CaptureFixture[str]) -> None:
    demonstrating.report(Terminal(), COMPARISON)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        "error, %             source    bn  tent",
        "clean                  10.0  12.5  12.5",
        "fog                    80.0  40.0  20.0",
        "gaussian_noise         60.0  20.0  10.0",
        "mean of corruptions    70.0  30.0  15.0",
        "ms per image           0.10  0.20  0.75",
    ]
    assert lines[11:14] == [
        "fog             source  " + 40 * "█" + " 80.0",
        "                bn      " + 20 * "█" + " 40.0",
        "                tent    " + 10 * "█" + " 20.0",
    ]


def test_bars_have_eighths_and_a_plain_form() -> None:
    assert (
        show.bar(0.5, 1.0, 3) == "█▌" and show.bar(0.5, 1.0, 4, ascii_only=True) == "##" and show.bar(0.0, 0.0, 9) == ""
    )


def test_the_numbers_for_programs() -> None:
    numbers = COMPARISON.as_json()
    assert numbers["mean"] == {"source": 0.7, "bn": 0.3, "tent": 0.15} and numbers["protocol"] == "reset-each-shift"


def test_png_needs_matplotlib(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demonstrating, "find_spec", lambda name: None)
    assert main(["demo", "--png", str(tmp_path / "x.png")]) == 5
    assert capsys.readouterr().err == "error: `--png` needs matplotlib\n\nhint: `pip install matplotlib`\n"


def test_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    show.plot(COMPARISON, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_missing_data_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(show, "STREAM", "none.npz")
    assert main(["demo"]) == 5
    assert capsys.readouterr().err.startswith("error: the demo's `none.npz` is not installed\n")


def test_the_shipped_stream() -> None:
    shifts = show.shifts()
    assert next(iter(shifts)) == show.CLEAN and len(shifts) > 4
    for stream in shifts.values():
        assert stream.labels is not None and stream.read(0, 2).shape == (2, *show.SAMPLE)
        assert 0 <= stream.read(0, 64).min() < stream.read(0, 64).max() <= 1


@pytest.mark.slow
def test_adaptation_lowers_the_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole = show.shifts()
    part = {name: first(stream, 4 * show.BATCH) for name, stream in list(whole.items())[:3]}
    monkeypatch.setattr(show, "shifts", lambda: part)
    assert main(["demo", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert set(numbers["errors"]) == set(part) and numbers["samples"] == 12 * show.BATCH
    assert numbers["mean"]["tent"] < numbers["mean"]["source"]
    assert demo.file(show.MODEL).is_file()


def first(stream: Stream, count: int) -> Stream:
    assert stream.labels is not None
    return replace(stream, count=count, labels=stream.labels[:count])


def test_the_files_to_try_with(run: Run, tmp_path: Path) -> None:
    seen = run("demo", "--files", "here")
    assert (seen.code, seen.out) == (0, "here/model.onnx\nhere/calibration.npz\nhere/stream.npz\n")
    assert (tmp_path / "here" / "model.onnx").read_bytes() == demo.file("fashion_resnet_bn.onnx").read_bytes()
    assert run("demo", "--files", "here").code == 0
    (tmp_path / "here" / "stream.npz").write_text("mine")
    seen = run("demo", "--files", "here")
    assert (seen.code, seen.err.splitlines()[0]) == (2, "error: another file has this name")
    assert (tmp_path / "here" / "stream.npz").read_text() == "mine"
