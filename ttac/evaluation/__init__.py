"""Evaluation: error, calibration, entropy, drift, time and memory of methods over streams of shifted samples.

Names are imported when first used; the packages of the extra `eval` only where their work is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttac.evaluation.evaluation import Evaluation
    from ttac.evaluation.study import Watch, evaluate

__all__ = ["Evaluation", "Watch", "evaluate"]

_PLACES = {
    "Evaluation": "ttac.evaluation.evaluation",
    "Watch": "ttac.evaluation.study",
    "evaluate": "ttac.evaluation.study",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(_PLACES[name]), name)
