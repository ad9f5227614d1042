"""Inputs and outputs bound to a session before it runs, as `onnxruntime.IOBinding` does, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ttac.errors import UsageError

CPU = "cpu"


class IOBinding:
    """Arrays bound to inputs, and the outputs that a run fills; made by `InferenceSession.io_binding`.

    Args:
        values: makes the engine's `OrtValue` from an array.
    """

    def __init__(self, values: Any) -> None:
        self._values = values
        self.inputs: dict[str, np.ndarray] = {}
        self._outputs: dict[str, Any] = {}
        self._results: list[np.ndarray] = []

    @property
    def names(self) -> list[str]:
        """Names of the bound outputs, in the order of binding."""
        return list(self._outputs)

    def bind_cpu_input(self, name: str, arr_on_cpu: np.ndarray) -> None:
        """Bind the array to the input."""
        self.inputs[name] = arr_on_cpu

    def bind_ortvalue_input(self, name: str, ortvalue: Any) -> None:
        """Bind the engine's value to the input."""
        self.inputs[name] = ortvalue.numpy()

    def bind_output(
        self,
        name: str,
        device_type: str = CPU,
        device_id: int = 0,
        element_type: Any = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None:
        """Bind the output to new memory; raises UsageError for another device, or for memory at an address."""
        if device_type != CPU or buffer_ptr is not None:
            raise _by_address("bind_output", "`bind_ortvalue_output`, or leave out `buffer_ptr`")
        self._outputs[name] = None

    def bind_ortvalue_output(self, name: str, ortvalue: Any) -> None:
        """Bind the output to the engine's value, which a run overwrites."""
        self._outputs[name] = ortvalue

    def bind_input(self, *arguments: Any, **named: Any) -> None:
        """Raise UsageError: a bundle reads arrays, not addresses."""
        raise _by_address("bind_input", "`bind_cpu_input` or `bind_ortvalue_input`")

    def fill(self, arrays: Sequence[np.ndarray]) -> None:
        """Take the results of a run, in the order of `names`."""
        self._results = list(arrays)
        for value, array in zip(self._outputs.values(), arrays):
            if value is not None:
                value.update_inplace(array)

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        """The outputs of the last run, in the order of binding."""
        return list(self._results)

    def get_outputs(self) -> list[Any]:
        """The outputs of the last run as the engine's values."""
        return [self._values(array) for array in self._results]

    def clear_binding_inputs(self) -> None:
        """Forget the bound inputs."""
        self.inputs = {}

    def clear_binding_outputs(self) -> None:
        """Forget the bound outputs."""
        self._outputs, self._results = {}, []

    def synchronize_inputs(self) -> None:
        """Do nothing: inputs lie on the CPU."""

    def synchronize_outputs(self) -> None:
        """Do nothing: outputs lie on the CPU."""


def _by_address(call: str, way_out: str) -> UsageError:
    return UsageError("a bundle runs on arrays in the memory of the CPU", where=f"`{call}`", hint=f"use {way_out}")
