"""State files: the adapted state on disk, with a checksum, bound to the bundle it was adapted in."""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ttac.errors import UsageError, VerificationError
from ttac.runtime.records import Manifest, TensorSpec
from ttac.runtime.tensors import LARGEST_HEADER, Tensors, check_tensors, first_not_finite, header_of, parse_tensors
from ttac.runtime.whole_file import PREVIOUS, write_whole

FORMAT = "ttac-state-2"
FAMILY = b"ttac-state"
"""Bytes in the header of every version of a state; a damaged state still has them, another kind of file does not."""
BLANK = "0" * 64
"""Digits of the checksum while the checksum is computed."""


def write_state(path: str | Path, tensors: Mapping[str, np.ndarray], identity: str) -> None:
    """Write the state of a bundle with this identity; the file before stays as `<path>.previous`.

    The checksum is the SHA-256 of the whole file with zeros as the checksum's digits.  Raises UsageError if the file
    cannot be written; the old file is intact then.
    """
    header, arrays = header_of(tensors, {"format": FORMAT, "bundle": identity, "checksum": BLANK})
    data = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays if array.size]
    digest = hashlib.sha256(header)
    for chunk in data:
        digest.update(chunk)
    sealed = header.replace(BLANK.encode(), digest.hexdigest().encode(), 1)
    write_whole(path, [sealed, *data], keep_previous=True)


def read_state(path: str | Path, manifest: Manifest) -> Tensors:
    """Return the tensors of a state file of this bundle, in private memory.

    Raises:
        UsageError: there is no such file, or its state belongs to another bundle or version of ttac.
        VerificationError: the file is damaged, or its tensors are not plausible as the state of this bundle.
    """
    where = f"`{path}`"
    data = _content(Path(path), manifest.state, where)
    if len(data) > 8 and data[8] != ord("{") and FAMILY not in data[:LARGEST_HEADER].tobytes():
        raise UsageError("the file is not a state", where=where, hint="`ttac run --save-state FILE` writes states")
    try:
        tensors, metadata = parse_tensors(data, where)
        if metadata.get("format") == FORMAT:
            _check_digest(data, metadata.get("checksum", ""), where)
        _check_bundle(metadata, manifest.identity, where)
        check_tensors(tensors, manifest.state, where)
        check_plausible(tensors, where)
    except VerificationError as error:
        previous = f"{path}{PREVIOUS}"
        if os.path.isfile(previous):
            error.hint = f"restore the state before: `{previous}`"
        raise
    return tensors


def check_plausible(tensors: Mapping[str, np.ndarray], where: str, hint: str = "save the state again") -> None:
    """Raise VerificationError for a value that is not finite, or for a negative variance.

    Variances are the tensors `<site>.var`, and `adam.v` with or without a suffix.
    """
    if name := first_not_finite(tensors):
        raise VerificationError(f"`{name}` is not finite", where=where, hint=hint)
    for name, array in tensors.items():
        if (name.endswith(".var") or re.match(r"adam\.v(/|$)", name)) and array.size and array.min() < 0:
            raise VerificationError(f"the variance `{name}` is negative", where=where, hint=hint)


def _content(path: Path, state: Mapping[str, TensorSpec], where: str) -> np.ndarray:
    """The bytes of the file; raises UsageError if there is none, VerificationError if it is too large for the state."""
    hint = "`adapter.save(path)` and `ttac run --save-state FILE` write states"
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError("there is no such state", where=where, hint=hint)
            sizes = (
                np.dtype(spec.dtype).itemsize * math.prod(int(size) for size in spec.shape) for spec in state.values()
            )
            if status.st_size > sum(sizes) + LARGEST_HEADER:
                raise VerificationError("the file is too large for the state of this bundle", where=where, hint=hint)
            return np.frombuffer(file.read(), np.uint8)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
        raise UsageError("there is no such state", where=where, hint=hint) from error
    except OSError as error:
        raise UsageError(f"cannot read the state: {error.strerror}", where=where, hint=hint) from error


def _check_digest(data: np.ndarray, checksum: str, where: str) -> None:
    length = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header, digits = data[:length].tobytes(), checksum.encode()
    if re.fullmatch(rb"[0-9a-f]{64}", digits) and header.count(digits) == 1:
        digest = hashlib.sha256(header.replace(digits, BLANK.encode()))
        digest.update(data[length:].data)
        if digest.hexdigest() == checksum:
            return
    raise VerificationError(
        "the state is damaged: its content does not match its checksum", where=where, hint="copy the file again"
    )


def _check_bundle(metadata: Mapping[str, str], identity: str, where: str) -> None:
    if metadata.get("bundle") != identity:
        raise UsageError(
            "the state belongs to another model, method or settings",
            where=where,
            hint="restore it into the bundle it was saved from, or into a bundle compiled with the same settings",
        )
    if metadata.get("format") != FORMAT:
        raise UsageError(
            f"the state has the format {metadata.get('format')!r}, this ttac reads {FORMAT!r}",
            where=where,
            hint="save the state again with this version of ttac",
        )
