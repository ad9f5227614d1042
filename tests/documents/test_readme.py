"""The README's blocks marked `<!-- run -->` do what they say; `ttac demo --files` is the first."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Run
from ttac.cli import commands

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- run -->\n```(\w+)\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_the_blocks_in_their_order(run: Run, tmp_path: Path) -> None:
    assert [language for language, _ in BLOCKS] == ["console", "python", "console", "console"]
    for language, text in BLOCKS:
        if language == "python":
            python(text, tmp_path)
        else:
            console(text, run)
    assert (tmp_path / "adapted.onnx").is_file() and (tmp_path / "logits.npz").is_file()


def console(text: str, run: Run) -> None:
    """Run the lines that begin with `$ ttac`; what stands under one is its output."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        program, *arguments = shlex.split(command)
        seen = run(*arguments)
        assert program == "ttac" and seen.code == 0, seen.err
        assert not expected or seen.out == expected


def python(text: str, folder: Path) -> None:
    program = f"{text}\nassert logits.shape == (8, 10)"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_in_the_table_exists() -> None:
    told = set(re.findall(r"^\| `ttac (\w+)", README, flags=re.MULTILINE))
    assert told | {"targets"} == set(commands.commands)
