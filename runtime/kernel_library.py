"""The operator library `ttac-kernels`: an optional package, checked before the engine loads its shared library.

A shared library that is cut short can end the process when it is loaded.  So its bytes are compared with the digest in
its package first.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "ttac_kernels"


@dataclass(frozen=True)
class KernelLibrary:
    """The library of this environment.

    Attributes:
        path: of the shared library, None where it cannot be used.
        reason: why it cannot be used.
        identity: version and digest, which tell two libraries apart.
    """

    path: Path | None
    reason: str = ""
    identity: str = ""


def kernel_library(operators: int) -> KernelLibrary:
    """Return the library that has version `operators` of the operators, or the reason why there is none."""
    try:
        package = importlib.import_module(PACKAGE)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == PACKAGE
        return _refused("the package `ttac-kernels` is not installed" if missing else f"`{PACKAGE}` fails: {error}")
    version = str(getattr(package, "__version__", "?"))
    found = getattr(package, "DOMAIN_VERSION", None)
    if not isinstance(found, int) or not getattr(package, "OLDEST_VERSION", found) <= operators <= found:
        return _refused(
            f"ttac-kernels {version} has version {found} of the operators, and the bundle needs {operators}"
        )
    try:
        return _checked(package, version)
    except Exception as error:
        return _refused(f"the library of ttac-kernels {version} cannot be read: {error}", version)


def _refused(reason: str, identity: str = "") -> KernelLibrary:
    return KernelLibrary(None, reason, identity or reason)


def _checked(package: Any, version: str) -> KernelLibrary:
    path = Path(package.library_path())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.library_digest():
        return _refused(f"the library of ttac-kernels {version} is damaged: `{path.name}` has another digest", version)
    return KernelLibrary(path, identity=f"{version} {digest}")
