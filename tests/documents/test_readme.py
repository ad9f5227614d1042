"""The README's blocks marked `<!-- run -->` print the lines under their commands, up to the numbers."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Run

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
LINES = 120
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]\d+)?|[KMG]iB")
BLOCKS = re.findall(r"<!-- run -->\n```(\w+)\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_the_blocks_in_their_order(run: Run, tmp_path: Path) -> None:
    assert [language for language, _ in BLOCKS] == ["console", "python"]
    for language, text in BLOCKS:
        if language == "python":
            python(text, tmp_path)
        else:
            console(text, run)
    assert (tmp_path / "adapted.safetensors").is_file()


def console(text: str, run: Run) -> None:
    """Run the lines that begin with `$ ttac`; the lines under one are its output, or lines of its output and progress."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        program, *arguments = shlex.split(command)
        seen = run(*arguments)
        assert program == "ttac" and seen.code == 0, seen.err
        if expected not in ("", seen.out):
            lines = iter(masked(seen.err + seen.out).splitlines())
            assert [line for line in masked(expected).splitlines() if line not in lines] == []


def masked(text: str) -> str:
    """The text with `#` for each number: times and rounding differ between machines."""
    return NUMBER.sub("#", text)


def python(text: str, folder: Path) -> None:
    program = f"{text}\nassert logits.shape == (8, 10)"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= LINES
