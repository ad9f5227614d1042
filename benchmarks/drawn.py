"""Drawn test data with labels: lines of text, and images of shapes with boxes; also their shifts.

    python -m benchmarks.drawn lines FILE.npz [COUNT]
    python -m benchmarks.drawn shapes FILE.npz [COUNT]

writes floats in 0 to 1, one array for each shift, and the labels, as `ttac eval --data` takes them.

The font is Aileron (CC0), which Pillow ships.  All numbers follow from a seed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""Class i + 1 of a line is character i; class 0 is the blank."""
LINE = (32, 128)
LONGEST = 7
"""Height and width of a line in pixels, and its largest number of characters."""
SHAPES = ("disc", "square", "triangle")
SIDE, MOST = 128, 4
"""Pixels of an image of shapes, and its largest number of shapes."""
SHIFTS = ("clean", "noise", "blur", "contrast", "dark")


def texts(count: int, seed: int, characters: str = CHARACTERS, shortest: int = 4) -> list[str]:
    """Return random texts."""
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list(characters), random.integers(shortest, LONGEST + 1))) for _ in range(count)]


def line(text: str, random: np.random.Generator, size: tuple[int, int] = LINE) -> np.ndarray:
    """Return a line of text, uint8 [height, width]: dark on light or light on dark, at a random place and size."""
    height, width = size
    font = ImageFont.load_default(float(random.uniform(0.62, 0.8) * height))
    left, top, right, bottom = font.getbbox(text)
    scale = min(1.0, (width - 4) / (right - left))
    if scale < 1:
        font = ImageFont.load_default(float(font.size * scale))  # type: ignore[union-attr]
        left, top, right, bottom = font.getbbox(text)
    paper, ink = (int(each) for each in random.choice([[230, 25], [25, 230], [190, 60], [255, 90]]))
    image = Image.new("L", (width, height), paper)
    x = random.uniform(1, max(1.5, width - 2 - (right - left))) - left
    y = random.uniform(1, max(1.5, height - 2 - (bottom - top))) - top
    ImageDraw.Draw(image).text((x, y), text, fill=ink, font=font)
    return np.asarray(image)


def lines(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lines, uint8 [count, 1, 32, 128], and their classes, int64 [count, 7], filled up with -1."""
    random, written = np.random.default_rng(seed + 1), texts(count, seed)
    images = np.stack([line(text, random) for text in written])[:, None]
    labels = np.full((count, LONGEST), -1, np.int64)
    for row, text in zip(labels, written, strict=True):
        row[: len(text)] = [CHARACTERS.index(character) + 1 for character in text]
    return images, labels


def shapes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 [count, 3, 128, 128], and boxes, float32 [count, 4, 5].

    A box is (class, centre x, centre y, width, height) in pixels; class -1 fills up.
    """
    random = np.random.default_rng(seed)
    images, boxes = np.empty((count, 3, SIDE, SIDE), np.uint8), np.full((count, MOST, 5), -1, np.float32)
    for image, own in zip(images, boxes, strict=True):
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        canvas = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pen, placed = ImageDraw.Draw(canvas), 0
        for _ in range(int(random.integers(1, MOST + 1))):
            placed += _draw(pen, own, placed, random)
        image[:] = np.asarray(canvas).transpose(2, 0, 1)
    return images, boxes


def _draw(pen: ImageDraw.ImageDraw, boxes: np.ndarray, placed: int, random: np.random.Generator) -> bool:
    """Draw a shape that covers no earlier one, and write its box; False where there is no room."""
    width, height = random.uniform(18, 48, 2)
    x, y = random.uniform(width / 2, SIDE - width / 2), random.uniform(height / 2, SIDE - height / 2)
    for _, left, top, wide, high in boxes[:placed]:
        if abs(left - x) < (wide + width) / 2 and abs(top - y) < (high + height) / 2:
            return False
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    kind, colour = int(random.integers(len(SHAPES))), tuple(int(v) for v in random.integers(0, 256, 3))
    if kind == 0:
        pen.ellipse(corners, fill=colour)
    elif kind == 1:
        pen.rectangle(corners, fill=colour)
    else:
        pen.polygon([(corners[0], corners[3]), (x, corners[1]), (corners[2], corners[3])], fill=colour)
    boxes[placed] = (kind, x, y, width, height)
    return True


def shifted(images: np.ndarray, shift: str, seed: int = 0, strength: float = 1.0) -> np.ndarray:
    """Return uint8 images [n, C, H, W] under a shift that moves no pixel."""
    random = np.random.default_rng([seed, SHIFTS.index(shift)])
    change: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "clean": lambda x: x,
        "noise": lambda x: x + random.normal(0, 45 * strength, x.shape),
        "blur": lambda x: _blurred(x, 1.6 * strength),
        "contrast": lambda x: 128 + (x - 128) * (1 - 0.75 * strength) + random.normal(0, 8, x.shape),
        "dark": lambda x: 255 * (x / 255) ** (1 + 1.2 * strength) * 0.55,
    }
    return np.clip(np.round(change[shift](images.astype(np.float64))), 0, 255).astype(np.uint8)


def _blurred(images: np.ndarray, radius: float) -> np.ndarray:
    """Return the images under a Gaussian blur, and a little noise of the sensor."""
    pictures: Sequence[np.ndarray] = [
        np.asarray(Image.fromarray(plane).filter(ImageFilter.GaussianBlur(radius)))
        for plane in images.astype(np.uint8).reshape(-1, *images.shape[2:])
    ]
    return np.stack(pictures).reshape(images.shape).astype(np.float64)


def main() -> int:
    """Write the samples that the command line names."""
    kind, file, *count = sys.argv[1:]
    images, labels = {"lines": lines, "shapes": shapes}[kind](int(count[0]) if count else 128, 7)
    arrays = {shift: shifted(images, shift).astype(np.float32) / 255 for shift in SHIFTS}
    np.savez(Path(file), labels=labels, **arrays)  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())
