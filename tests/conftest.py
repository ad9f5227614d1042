"""Fixtures of several test files."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import manifest_schema
from ttac.cli import main


@dataclass(frozen=True)
class Seen:
    code: int
    out: str
    err: str


Run = Callable[..., Seen]


@pytest.fixture(scope="session", autouse=True)
def _schema_accepts_every_manifest() -> Iterator[None]:
    """The published schema refuses no manifest that a test compiles or loads; the last test reports a difference."""
    if importlib.util.find_spec("jsonschema") is None:
        yield
        return
    with manifest_schema.watched() as problems:
        yield
    assert problems == []


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles do not measure memory, which takes most of the time of a small compile."""
    monkeypatch.setattr("ttac.finish.measure", lambda *_, **__: None)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that runs a command in an empty folder without colours: `run("compile", "x.onnx")`."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> Seen:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Seen(code, captured.out, captured.err)

    return call


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of Ctrl-C: a shell starts background processes with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
