"""The device half of ttac: load a bundle, predict, adapt.

It needs numpy, safetensors and onnxruntime only, and imports each at its first use.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttac.runtime.adapter import Adapter
    from ttac.runtime.bundle import Bundle
    from ttac.runtime.engine import EngineSettings, warm_engine
    from ttac.runtime.session import InferenceSession

__all__ = ["Adapter", "Bundle", "EngineSettings", "InferenceSession", "load", "warm_engine"]

_PLACES = {
    "Adapter": "ttac.runtime.adapter",
    "Bundle": "ttac.runtime.bundle",
    "EngineSettings": "ttac.runtime.engine",
    "InferenceSession": "ttac.runtime.session",
    "warm_engine": "ttac.runtime.engine",
}


def load(
    path: str | Path, threads: int | None = None, settings: EngineSettings | None = None, form: str = "auto"
) -> Adapter:
    """Return the adapter for the bundle in folder `path`; arguments and errors are those of `Adapter`."""
    from ttac.runtime.adapter import Adapter

    return Adapter(path, threads, settings, form)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
