"""Custom operators of onnxruntime in one shared library, for the graphs that ttac compiles."""

from __future__ import annotations

import sys
from pathlib import Path

from ttac_kernels.version import VERSION as __version__

__all__ = ["__version__", "library_path"]


def library_path() -> Path:
    """Return the path of the shared library, for `SessionOptions.register_custom_ops_library`."""
    return Path(__file__).with_name("libttac_kernels.dylib" if sys.platform == "darwin" else "libttac_kernels.so")
