"""ttac: a test-time adaptation compiler.

    bundle = ttac.compile("model.onnx", target="jetson", output="model.ttac")    # on the development machine
    adapter = ttac.load("model.ttac")                                            # on the device
    logits = adapter.step(x)

`ttac.methods.names()` and `ttac.targets.names()` list methods and targets.  Names are imported when first used, so that
a device needs numpy, safetensors and onnxruntime only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttac import methods, targets
    from ttac.errors import TtacError
    from ttac.evaluation.recommendation import recommend
    from ttac.evaluation.study import evaluate
    from ttac.pipeline import compile_model as compile
    from ttac.runtime import Adapter, Bundle, InferenceSession, SourceMonitor, load

    __version__: str

__all__ = [
    "Adapter",
    "Bundle",
    "InferenceSession",
    "SourceMonitor",
    "TtacError",
    "__version__",
    "compile",
    "evaluate",
    "load",
    "methods",
    "recommend",
    "targets",
]

_PLACES = {
    "Adapter": ("ttac.runtime.adapter", "Adapter"),
    "Bundle": ("ttac.runtime.bundle", "Bundle"),
    "InferenceSession": ("ttac.runtime.session", "InferenceSession"),
    "SourceMonitor": ("ttac.runtime.source_monitor", "SourceMonitor"),
    "TtacError": ("ttac.errors", "TtacError"),
    "compile": ("ttac.pipeline", "compile_model"),
    "evaluate": ("ttac.evaluation.study", "evaluate"),
    "load": ("ttac.runtime", "load"),
    "methods": ("ttac.methods", ""),
    "recommend": ("ttac.evaluation.recommendation", "recommend"),
    "targets": ("ttac.targets", ""),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _PLACES:
        raise AttributeError(f"module `ttac` has no attribute `{name}`")
    place, attribute = _PLACES[name]
    module = import_module(place)
    return getattr(module, attribute) if attribute else module


def _version() -> str:
    """Version of the distribution: `ttac`, or `ttac-runtime` where the device half alone is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ttac")
    except PackageNotFoundError:
        return version("ttac-runtime")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
