"""The README's blocks marked `<!-- run -->` do what they say; its model, calibration and stream are the demo's."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"<!-- run -->\n```(\w+)\n(.*?)```", re.DOTALL)
DEMO = Path(__file__).parent.parent / "ttac" / "demo"
FILES = {
    "model.onnx": "fashion_resnet_bn.onnx",
    "calibration.npz": "fashion_calibration.npz",
    "stream.npz": "fashion_stream.npz",
}


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(README.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a model, source images, and a stream."""
    made = tmp_path_factory.mktemp("user")
    for name, shipped in FILES.items():
        shutil.copy(DEMO / shipped, made / name)
    return made


def ttac(command: str, folder: Path) -> str:
    """Run a command line that begins with `ttac`; its stdout."""
    words = shlex.split(command)
    assert words[0] == "ttac"
    done = subprocess.run(
        [sys.executable, "-m", "ttac", *words[1:]], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_blocks_in_their_order(folder: Path) -> None:
    languages = [language for language, _ in blocks()]
    assert languages == ["console", "python", "console"]
    for language, text in blocks():
        if language == "python":
            python(text, folder)
        else:
            console(text, folder)
    assert (folder / "adapted.onnx").is_file() and (folder / "logits.npz").is_file()


def console(text: str, folder: Path) -> None:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        printed = ttac(command, folder)
        assert not expected or printed == expected


def python(text: str, folder: Path) -> None:
    x = np.random.default_rng(0).random((4, 1, 28, 28), np.float32)
    np.save(folder / "x.npy", x)
    program = f"import numpy\nx = numpy.load('x.npy')\n{text}\nassert logits.shape == (4, 10)"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_in_the_table_exists() -> None:
    from ttac.cli import commands

    told = set(re.findall(r"^\| `ttac (\w+)", README.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert told | {"targets"} == set(commands.commands)
