"""The bytes of a bundle depend on the input alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.whole_models import MODELS

COMPILE = """
import sys
import ttac
from ttac import finish, targets
finish.measure = lambda *_, **__: None
ttac.compile(sys.argv[1], output=sys.argv[2], batch=4)
"""


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """In processes that order their sets differently, from different folders."""
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        (folder / "net.onnx").write_bytes(MODELS["mobilenet_v3"].read_bytes())
        command = [sys.executable, "-c", COMPILE, str(folder / "net.onnx"), str(folder / "b.ttac")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, cwd=folder)
        found.append({path.name: path.read_bytes() for path in (folder / "b.ttac").iterdir()})
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []
