"""The import of onnxruntime, when a bundle is loaded: without PyTorch, and only versions that work."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from functools import cache
from typing import Any

import numpy as np

from ttac.errors import RuntimeMissingError

OLDEST = (1, 18)
DENIED = {
    ("1.21.0", "aarch64"): "it stops with an illegal instruction on some ARM cores (microsoft/onnxruntime#23957)",
    ("1.21.0", "arm64"): "it stops with an illegal instruction on some ARM cores (microsoft/onnxruntime#23957)",
}
"""Engine versions known to be bad, by version and machine, with the reason."""


@cache
def engine() -> Any:
    """Return the onnxruntime module; raises RuntimeMissingError if it is missing, too old or known to be bad here."""
    try:
        module = _import_without_training()
        version = str(module.__version__)
    except (ImportError, AttributeError) as error:
        raise RuntimeMissingError(
            f"no working onnxruntime: {first_line(error)}", where="this environment", hint=_way_out(error)
        ) from error
    if problem := problem_with(version, platform.machine()):
        raise RuntimeMissingError(
            f"onnxruntime {version} cannot be used: {problem}",
            where="this environment",
            hint="`pip install 'onnxruntime>=1.18,!=1.21.0'`",
        )
    return module


def _way_out(error: BaseException) -> str:
    """The hint for an import that failed; builds before 1.19 raise an error without text beside numpy 2."""
    if isinstance(error, ImportError) and not str(error) and release(np.__version__) >= (2,):
        return "releases before 1.19 need numpy 1: `pip install 'numpy<2'`, or install a later onnxruntime"
    return "`pip install onnxruntime`"


def _import_without_training() -> Any:
    """Import onnxruntime without PyTorch, which the training wheel would also import: 2.5 s and 240 MB without use.

    The wheel behaves like an inference build if `onnxruntime.training` is absent, so that package is hidden during the
    import.
    """
    training = "onnxruntime.training"
    hide = "onnxruntime" not in sys.modules and training not in sys.modules
    if hide:
        sys.modules[training] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("onnxruntime")
    finally:
        if hide:
            sys.modules.pop(training, None)


def problem_with(version: str, machine: str) -> str:
    """Return the reason against this engine version on a machine such as `aarch64`; empty if there is none."""
    if release(version) < OLDEST:
        return "it is older than 1.18"
    return DENIED.get((version, machine.lower()), "")


def release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def first_line(error: BaseException) -> str:
    """Return the first line of the error's text, or the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
