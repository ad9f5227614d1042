"""Named steps that no ONNX graph can do, such as an eigendecomposition.  None is needed so far.

A step is plain numpy: it gets the tensors it reads by name and returns those it writes.  A written name that is in the
bundle's state table becomes pending state, any other becomes a value of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class HostStep:
    """What a step reads and writes, and the function that does it; it must not write into what it is given."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


STEPS: dict[str, HostStep] = {}
