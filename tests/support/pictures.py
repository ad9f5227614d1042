"""Screenshots compared with committed pictures; `TTAC_WRITE_PICTURES=1` writes the pictures again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

BLOCK = 26
"""Pixels of a block; block means differ little between two sets of fonts."""
ALIKE = 12.0
"""Most mean difference of two pictures, of 255."""


def assert_looks_like(now: Path, kept: Path) -> None:
    """Fail unless the screenshot has the size of the picture `kept`, and nearly its brightness everywhere."""
    if os.environ.get("TTAC_WRITE_PICTURES"):
        kept.parent.mkdir(exist_ok=True)
        with Image.open(now) as image:
            image.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(kept, optimize=True)
    found, before = _blocks(now), _blocks(kept)
    assert found.shape == before.shape and np.abs(found - before).mean() < ALIKE


def _blocks(path: Path) -> np.ndarray:
    """Mean brightness of each block of the picture."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L").reduce(BLOCK), float)
