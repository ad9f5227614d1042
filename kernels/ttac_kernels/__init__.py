"""Custom operators of onnxruntime in one shared library, for the graphs that ttac compiles."""

from __future__ import annotations

import sys
from pathlib import Path

from ttac_kernels.version import VERSION as __version__

__all__ = ["DOMAIN_VERSION", "OLDEST_VERSION", "__version__", "library_digest", "library_path"]

DOMAIN_VERSION = 7
"""Number of the operators' meaning, of which graphs need one."""
OLDEST_VERSION = 3
"""The oldest number whose operators the library has unchanged; graphs with numbers in between run too."""


def library_path() -> Path:
    """Return the path of the shared library, for `SessionOptions.register_custom_ops_library`."""
    return Path(__file__).with_name("libttac_kernels.dylib" if sys.platform == "darwin" else "libttac_kernels.so")


def library_digest() -> str:
    """Return the SHA-256 that the library had after its build, in hexadecimal digits.

    Raises FileNotFoundError if the library was not built.
    """
    return Path(__file__).with_name("library.sha256").read_text(encoding="ascii").strip()
