"""`benchmarks.other_machine`: it accepts the numbers of this machine, and no others."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import other_machine

CHOSEN = tuple(row for row in other_machine.BUNDLES if row[:2] == (other_machine.VIT, "sar"))


pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_machine, "BUNDLES", CHOSEN)


def test_only_rounding_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "numbers"
    monkeypatch.setattr(sys, "argv", ["other_machine", "write", str(folder)])
    assert other_machine.main() == 0
    monkeypatch.setattr(sys, "argv", ["other_machine", "check", str(folder)])
    assert other_machine.main() == 0
    assert "| fashion_vit sar | 0e+00 | 0e+00 | 0 of 48 |" in capsys.readouterr().out
    path = folder / "fashion_vit sar.npy"
    written = np.load(path)
    written[-1, 0, 0] += 3e-4 * np.abs(written).max()
    np.save(path, written)
    assert other_machine.main() == 1
    assert "| fashion_vit sar | 0e+00 | 3e-04 | 0 of 48 |" in capsys.readouterr().out


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_a_number_is_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: float) -> None:
    other_machine.write(tmp_path, "cpu")
    monkeypatch.setattr(other_machine, "logits", lambda path, x: np.full((6, 8, 10), broken, np.float32))
    assert [good for good, _ in other_machine.check(tmp_path)] == [False]
