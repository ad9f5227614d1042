"""A folder of images: its files in order, and the classes that its sub-folders name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ttac.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
"""Ends of the names that count as images."""


@dataclass(frozen=True)
class ImageFolder:
    """Images below a folder; where all images lie in sub-folders, the sub-folders are the classes."""

    path: Path

    @cached_property
    def files(self) -> list[Path]:
        """All images in the order of their paths; raises UsageError where there is no image."""
        images = sorted(file for file in self.path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not images:
            hint = "known forms: " + ", ".join(SUFFIXES)
            raise UsageError("the folder holds no image", where=f"`{self.path}`", hint=hint)
        return images

    @cached_property
    def classes(self) -> list[str]:
        """Names of the sub-folders with images, sorted by value if all are whole numbers, otherwise by name.

        Empty where an image lies in the folder itself.
        """
        names = {file.relative_to(self.path).parts[0] for file in self.files if file.parent != self.path}
        if any(file.parent == self.path for file in self.files):
            return []
        return sorted(names, key=lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else sorted(names)

    def labels(self) -> np.ndarray | None:
        """Return the class number of each image, int64 [files]; None where an image lies in the folder itself."""
        if not self.classes:
            return None
        number = {name: position for position, name in enumerate(self.classes)}
        return np.array([number[file.relative_to(self.path).parts[0]] for file in self.files], np.int64)

    @property
    def names(self) -> list[str]:
        """Paths of the images relative to the folder, with `/` between their parts."""
        return [file.relative_to(self.path).as_posix() for file in self.files]

    def digest(self) -> str:
        """Return the SHA-256 of the names, sizes and contents of all images."""
        content = hashlib.sha256()
        for file in self.files:
            content.update(f"{file.relative_to(self.path)} {file.stat().st_size}\0".encode())
            content.update(file.read_bytes())
        return content.hexdigest()
