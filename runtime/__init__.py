"""The device half of ttac: load a bundle, predict, adapt.

It needs numpy, safetensors and onnxruntime only, and imports each at its first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttac.runtime.adapter import Adapter
    from ttac.runtime.bundle import Bundle
    from ttac.runtime.engine import EngineSettings, warm_engine
    from ttac.runtime.providers import Provider
    from ttac.runtime.session import InferenceSession
    from ttac.runtime.source_monitor import SourceMonitor

__all__ = ["Adapter", "Bundle", "EngineSettings", "InferenceSession", "SourceMonitor", "load", "warm_engine"]

_PLACES = {
    "Adapter": "ttac.runtime.adapter",
    "Bundle": "ttac.runtime.bundle",
    "EngineSettings": "ttac.runtime.engine",
    "InferenceSession": "ttac.runtime.session",
    "SourceMonitor": "ttac.runtime.source_monitor",
    "warm_engine": "ttac.runtime.engine",
}


def load(
    path: str | Path,
    threads: int | None = None,
    settings: EngineSettings | None = None,
    form: str = "auto",
    providers: Sequence[Provider] | None = None,
    *,
    compare: bool = True,
) -> Adapter:
    """Return the adapter for the bundle at `path`, a folder or the file of `ttac pack`.

    Args:
        path, threads, settings, form, compare: as for `Adapter`.
        providers: execution providers, best first: short names (`"cuda"`), the engine's names, or pairs of a name and
            the provider's options; None takes those of the bundle's target that the engine has, by default the CPU.
            The CPU runs the nodes that none of them takes.  With another provider than the CPU the portable graphs run.

    Raises the errors of `Adapter`, UsageError for an unknown provider, and RuntimeMissingError for a provider that the
    engine lacks.
    """
    from ttac.runtime.adapter import Adapter

    return Adapter(path, threads, with_providers(settings, providers), form, compare=compare)


def with_providers(settings: EngineSettings | None, providers: Sequence[Provider] | None) -> EngineSettings | None:
    """Return the settings with `providers` checked against the engine; None for the defaults."""
    if providers is None:
        return settings
    from dataclasses import replace

    from ttac.runtime.engine import EngineSettings, chosen

    return replace(settings or EngineSettings(), providers=tuple(chosen(providers)))


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
