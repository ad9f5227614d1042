"""The state of an adapter, and the commit of a step: all new values become the state, or none.

Small tensors are exchanged at once.  Tensors of deferred runs are too large to exist twice.  They lie in separate
buffers, which the commit overwrites graph by graph.  Before that, each deferred run happens once as a check for finite
values.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

import numpy as np

from ttac.errors import RuntimeMissingError, VerificationError
from ttac.runtime.json_values import HINT
from ttac.runtime.program.perform import DeferredRun
from ttac.runtime.program.world import Device, Tensor
from ttac.runtime.records import TensorSpec
from ttac.runtime.tensors import is_finite, leave_on_disk

COPIED_BYTES = 1 << 20
"""Bytes of a new state tensor from which it stays in the engine's arena; smaller tensors are copied."""


class State:
    """The state tensors of a bundle.

    Args:
        device: the engine's tensors.
        initial: the compiled values, which are never written.
        specs: the state table.
        overwritten: names of tensors that deferred runs update; they get separate buffers.
        where: the bundle, for error messages.
    """

    def __init__(
        self,
        device: Device,
        initial: Mapping[str, np.ndarray],
        specs: Mapping[str, TensorSpec],
        overwritten: Sequence[str],
        where: str,
    ) -> None:
        self._device, self._specs, self._where = device, specs, where
        self._dtypes = {name: np.dtype(spec.dtype) for name, spec in specs.items()}
        self._buffers = {name: np.array(initial[name], order="C") for name in overwritten}
        # With buffers, the other tensors are copied too: a view would bring the file's pages back at every step.
        copies = {name: array.copy() for name, array in initial.items() if self._buffers and name not in self._buffers}
        self._first = initial
        self.initial: dict[str, Tensor] = {
            name: device.tensor(copies.get(name, array)) for name, array in initial.items()
        }
        own = {name: device.tensor(array) for name, array in self._buffers.items()}
        self.tensors: dict[str, Tensor] = {**self.initial, **own}
        self._torn = False
        self._leave_first_on_disk()

    def arrays(self) -> dict[str, np.ndarray]:
        """Views of the state for reading, valid until the next change."""
        return {name: self._device.array(tensor) for name, tensor in self.tensors.items()}

    def refuse_torn(self) -> None:
        """Raise RuntimeMissingError if a failure mixed tensors of one step with tensors of the next."""
        if self._torn:
            raise RuntimeMissingError(
                "the state is half of one step and half of the next: the engine failed while a step was committed",
                where=self._where,
                hint="call `reset()`, or `restore` a saved state",
            )

    def reset(self) -> None:
        """Set the state to its compiled values."""
        self._take(self._first, self.initial)
        self._leave_first_on_disk()

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set the state to copies of `arrays`, which fit the state table."""
        others = {name: array for name, array in arrays.items() if name not in self._buffers}
        self._take(arrays, {name: self._device.tensor(array.copy()) for name, array in others.items()})

    def commit(self, pending: Mapping[str, Tensor], deferred: Sequence[DeferredRun]) -> bool:
        """Make the pending tensors and the outputs of the deferred runs the state if all are finite.

        Returns whether all are finite.

        Raises:
            VerificationError: a tensor does not fit the state table; the state is unchanged.
            RuntimeMissingError: the engine failed.  The state is unchanged if the first pass over the deferred runs
                failed.  If the second pass failed, the state is torn and refused until it is reset or restored.
        """
        if not self._are_finite(pending) or not all(self._are_finite(run()) for run in deferred):
            return False
        exchanged = {name: self._owned(tensor) for name, tensor in pending.items() if name not in self._buffers}
        copied = {name: self._device.array(tensor) for name, tensor in pending.items() if name in self._buffers}
        if deferred or copied:
            _uninterrupted(lambda: self._overwrite(deferred, copied, exchanged))
        else:
            self.tensors = {**self.tensors, **exchanged}
        return True

    def _overwrite(
        self, deferred: Sequence[DeferredRun], copied: Mapping[str, np.ndarray], exchanged: Mapping[str, Tensor]
    ) -> None:
        for run in deferred:
            outputs = run()
            # Same nodes, same numbers: only a graph that draws random numbers can differ from the first pass.
            if not self._are_finite(outputs):
                problem = "a graph gave a finite state in its first run and another state in its second run"
                raise VerificationError(problem, where=self._where, hint=HINT)
            self._torn = True
            for name, tensor in outputs.items():
                np.copyto(self._buffers[name], self._device.array(tensor))
            del outputs
            run.release()
        self._torn = True
        for name, array in copied.items():
            np.copyto(self._buffers[name], array)
        self.tensors = {**self.tensors, **exchanged}
        self._torn = False

    def _take(self, arrays: Mapping[str, np.ndarray], others: Mapping[str, Tensor]) -> None:
        if not self._buffers:
            self.tensors = dict(others)
            return
        own = {name: self.tensors[name] for name in self._buffers}

        def overwrite() -> None:
            self._torn = True
            for name, buffer in self._buffers.items():
                np.copyto(buffer, arrays[name])
            self.tensors = {**others, **own}
            self._torn = False

        _uninterrupted(overwrite)

    def _leave_first_on_disk(self) -> None:
        """Free the pages of the compiled values of large tensors; only a reset reads them."""
        if self._buffers:
            leave_on_disk(self._first.values())

    def _are_finite(self, tensors: Mapping[str, Tensor]) -> bool:
        arrays = {name: self._device.array(tensor) for name, tensor in tensors.items()}
        for name, array in arrays.items():
            spec = self._specs[name]
            if array.dtype != self._dtypes[name] or array.shape != spec.shape:
                actual, declared = f"{array.dtype} {list(array.shape)}", f"{spec.dtype} {list(spec.shape)}"
                problem = f"a graph made state `{name}` {actual}, the state table says {declared}"
                raise VerificationError(problem, where=self._where, hint=HINT)
        return all(is_finite(array) for array in arrays.values())

    def _owned(self, tensor: Tensor) -> Tensor:
        """The tensor; a small tensor is copied out of the engine's arena.

        A tensor that survives the runs would fragment the arena space of the residuals.  The copy of a large tensor
        would cost more memory than its gap.
        """
        if self._device.owns(tensor):
            return tensor
        array = self._device.array(tensor)
        return self._device.tensor(array.copy()) if array.nbytes < COPIED_BYTES else tensor


def _uninterrupted(work: Callable[[], None]) -> None:
    """Do `work`, and deliver a Ctrl-C that comes meanwhile afterwards; only the main thread receives any."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        work()
        return
    interrupts: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: interrupts.append((number, frame)))
    try:
        work()
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupts:
        handler(*interrupts[0])
