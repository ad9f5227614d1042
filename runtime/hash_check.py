"""The hash check of a bundle: each listed file lies inside the folder and has the SHA-256 of the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ttac.errors import VerificationError
from ttac.runtime.json_values import HINT, is_plain_name


def check_hashes(folder: Path, files: Mapping[str, str]) -> None:
    """Raise VerificationError if one of the `files` (name to SHA-256) is missing or has another hash."""
    for name, digest in files.items():
        path = inside(folder, name)
        if not path.is_file():
            raise VerificationError("a file of the bundle is missing", where=f"`{path}`", hint=HINT)
        if digest_of(path) != digest:
            raise VerificationError(
                "a file of the bundle is not the one the manifest was written for", where=f"`{path}`", hint=HINT
            )


def inside(folder: Path, name: str) -> Path:
    """The file `name` of the folder; raises VerificationError if the name or a link leads out of it or in a circle."""
    path = folder / name
    try:
        leaves = not is_plain_name(name) or _target(path).parent != folder.resolve()
    except (OSError, RuntimeError) as error:
        hint = "copy the bundle again without links"
        raise VerificationError(
            f"`{name}` is a link that cannot be followed", where=f"`{folder}`", hint=hint
        ) from error
    if leaves:
        raise VerificationError(f"`{name}` leads out of the bundle's folder", where=f"`{folder}`", hint=HINT)
    return path


def _target(path: Path) -> Path:
    """Return the path behind all links; raises OSError, or RuntimeError before Python 3.13, for links in a circle."""
    try:
        return path.resolve(strict=True)
    except FileNotFoundError:
        return path.resolve()


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in lower-case hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
