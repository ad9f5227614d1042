"""Methods and targets of other installed packages: found by entry points, listed, and refused where names clash."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Run
from ttac import methods, targets
from ttac.errors import UsageError

VALUE = """
from ttac.spec import Method
METHOD = Method(name="quiet", title="no adaptation, from elsewhere", paper="", needs="nothing", adapts=False)
NUMBER = 3
BOARD = {
    "title": "Board of a package", "engine": "onnxruntime", "opset": 18, "ir_version": 9, "memory": "256 MiB",
    "denied": {"1.18.0": "slow"}, "notes": ["made up"],
}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the module `elsewhere`."""
    (tmp_path / "elsewhere.py").write_text(VALUE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def declare(folder: Path, group: str, *points: str, name: str = "elsewhere") -> None:
    """Declare entry points as `pip install` does."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *points, ""]), encoding="utf-8")


def test_an_installed_method_is_listed_and_found(package: Path, run: Run) -> None:
    declare(package, "ttac.methods", "quiet = elsewhere:METHOD")
    assert "quiet" in methods.names() and methods.find("quiet").title.endswith("from elsewhere")
    assert "quiet" in run("methods").out


def test_an_installed_target_is_listed_and_found(package: Path, run: Run, tmp_path: Path) -> None:
    declare(package, "ttac.targets", "board = elsewhere:BOARD")
    assert targets.names()[-1] == "board" and "Board of a package" in run("targets").out
    (tmp_path / "board.toml").write_text(run("targets", "board", "--toml").out, encoding="utf-8")
    assert targets.find(str(tmp_path / "board.toml")) == targets.find("board")


def test_a_taken_name_is_refused(package: Path) -> None:
    declare(package, "ttac.methods", "tent = elsewhere:METHOD")
    with pytest.raises(UsageError, match="taken by ttac"):
        methods.names()


def test_two_packages_with_one_name_are_refused(package: Path) -> None:
    declare(package, "ttac.methods", "quiet = elsewhere:METHOD")
    declare(package, "ttac.methods", "quiet = other:METHOD", name="other")
    with pytest.raises(UsageError, match=r"taken by package `(elsewhere|other)`"):
        methods.find("quiet")


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("quiet = elsewhere:NUMBER", "is a `int`"),
        ("quiet = elsewhere:MISSING", "cannot be imported"),
        ("quiet = nowhere:METHOD", "cannot be imported"),
        ("loud = elsewhere:METHOD", "leads to the method `quiet`"),
    ],
)
def test_a_wrong_entry_point_is_refused(package: Path, point: str, message: str) -> None:
    declare(package, "ttac.methods", point)
    with pytest.raises(UsageError, match=message):
        methods.find(point.partition(" ")[0])
