"""The commands of `docs/readers-and-detectors.md` run in their order, and print errors as the tables have them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "readers-and-detectors.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, flags=re.MULTILINE)


def printed(command: str, folder: Path) -> str:
    words = shlex.split(command)
    words = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", *words]
    seen = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert seen.returncode == 0, seen.stderr
    return seen.stdout


def row(table: str, name: str) -> list[float]:
    """Numbers of the first row of that name."""
    line = next(line for line in table.splitlines() if line.split()[:1] == [name])
    return [float(word) for word in line.split()[1:]]


@pytest.mark.slow
def test_the_commands_give_character_error_and_map(tmp_path: Path) -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("pycocotools")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    assert len(COMMANDS) == 4
    _, texts, _, boxes = (printed(command, tmp_path) for command in COMMANDS)
    assert "character error, %" in texts and "1 - mAP, %" in boxes
    for table, shift, clean in ((texts, "dark", 2), (boxes, "contrast", 15)):
        source, bn = row(table, shift)
        assert bn < source - 10 and max(row(table, "clean")) < clean
