"""The tensors, graphs and device that the names of a program refer to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Tensor = Any
"""A tensor on the device, in the engine's own class."""


class Graph(Protocol):
    """The part of a loaded graph that a program uses."""

    @property
    def inputs(self) -> Collection[str]:
        """Names of the inputs."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""

    @property
    def state(self) -> Mapping[str, str]:
        """Output -> state tensor."""

    @property
    def stats(self) -> Mapping[str, str]:
        """Output -> reported name."""

    def run(self, feed: Mapping[str, Tensor], outputs: Sequence[str]) -> list[Tensor]:
        """The named outputs, in that order."""


class Device(Protocol):
    """The part of the engine that a program uses, in addition to graphs."""

    def tensor(self, array: Any) -> Tensor:
        """`array` as a tensor."""

    def array(self, tensor: Tensor) -> Any:
        """`tensor` as an array that must not be written."""

    def owns(self, tensor: Tensor) -> bool:
        """Whether the tensor lies in an array outside the engine's arena."""


@dataclass(frozen=True)
class World:
    """Everything a program may name; `state` is the committed state, which a step never changes.

    `inputs` has the axis of each user input with the samples, None for an input that all samples share.
    """

    device: Device
    graphs: Mapping[str, Graph]
    inputs: Mapping[str, int | None]
    state: Mapping[str, Tensor]
    initial: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
