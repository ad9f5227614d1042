"""Memory that a process freed goes back to the system."""

from __future__ import annotations

import platform

import pytest

from ttac.reports.measure import kilobytes
from ttac.runtime.tensors import return_freed_memory

PIECE, PIECES = 64 << 10, 1024
"""Bytes of a piece, below the size that glibc maps alone, and the number of pieces: 64 MiB."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no malloc_trim")
def test_freed_pieces_below_one_that_lives_are_returned() -> None:
    pieces = [bytearray(PIECE) for _ in range(PIECES)]
    living = bytearray(PIECE)
    pieces.clear()
    before = kilobytes("VmRSS")
    return_freed_memory()
    assert before - kilobytes("VmRSS") > PIECE * PIECES // 1024 // 2
    assert len(living) == PIECE
