"""Graphs that are deeper than Python's recursion get forms with kernels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import ttac
from benchmarks.compile_time import write_net

BLOCKS = 60


@pytest.mark.slow
def test_a_deep_residual_net_compiles(tmp_path: Path) -> None:
    nodes = write_net(tmp_path / "deep.onnx", BLOCKS)
    assert 3 * nodes > sys.getrecursionlimit()
    ttac.compile(tmp_path / "deep.onnx", method="tent", batch=4, output=tmp_path / "b.ttac")
