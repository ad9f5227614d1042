"""Options of a compile in a TOML file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.support.source_models import saved, source

pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(saved(source(), tmp_path))


def manifest(folder: str) -> dict[str, object]:
    """The parts of a manifest that the options decide."""
    found = json.loads((Path(folder) / "manifest.json").read_text())
    return {key: found[key] for key in ("method", "target", "batch", "preprocessing", "files")}


def test_saved_options_give_the_same_bundle(run: Run, model: str) -> None:
    options = ["--method", "tent", "--target", "jetson", "--batch", "4", "--set", "lr=0.01", "--set", "optimizer=sgd"]
    pixels = ["--pixels", "mean=0.5", "--pixels", "std=0.25", "--memory-budget", "64MiB", "--shape", "3x8x8"]
    first = run("compile", model, *options, *pixels, "-o", "a.ttac", "--save-config", "a.toml")
    assert first.code == 0, first.err
    assert run("compile", model, "--config", "a.toml", "-o", "b.ttac").code == 0
    assert manifest("a.ttac") == manifest("b.ttac")


def test_the_command_line_has_priority(run: Run, model: str) -> None:
    Path("c.toml").write_text('method = "bn"\nbatch = 4\ndry-run = false\n[set]\nprior = 8\n')
    assert run("compile", model, "--config", "c.toml", "--batch", "2", "-o", "c.ttac").code == 0
    found = json.loads(Path("c.ttac/manifest.json").read_text())
    assert found["method"]["name"] == "bn" and found["batch"]["planned"] == 2
    assert found["method"]["settings"]["prior"] == 8


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('metod = "tent"', "there is no option `metod`"),
        ("method = tent", "the options are not TOML"),
        ('batch = "many"', "`many` does not fit"),
        ('method = "tend"', "there is no method `tend`"),
    ],
)
def test_wrong_files_are_refused(run: Run, model: str, text: str, problem: str) -> None:
    Path("c.toml").write_text(text)
    seen = run("compile", model, "--config", "c.toml", "-o", "c.ttac")
    assert seen.code == 2 and problem in seen.err and not Path("c.ttac").exists()


def test_a_missing_file_is_refused(run: Run, model: str) -> None:
    seen = run("compile", model, "--config", "none.toml")
    assert seen.code == 2 and "cannot read the options" in seen.err
