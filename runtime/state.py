"""What an adapter carries from step to step, and how a step's new values become it: all of them or none.

Small tensors are exchanged at once.  What late runs move is too large to exist twice: it lies in buffers of its own
that are overwritten, graph by graph, after all of it was computed once to see that it is finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from ttac.errors import RuntimeMissingError, VerificationError
from ttac.runtime.checks import HINT
from ttac.runtime.manifest import TensorSpec
from ttac.runtime.program import Device, Late, Tensor
from ttac.runtime.tensors import is_finite, leave_on_disk

LARGE = 1 << 20
"""Bytes from which on a new state tensor stays where the engine put it."""


class State:
    """The state tensors of a bundle.

    Args:
        initial: what they were when the bundle was compiled, never written to.
        specs: the state table.
        overwritten: names of tensors that late runs move; they get room of their own.
        where: the bundle, for errors.
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
        self._buffers = {name: np.array(initial[name], order="C") for name in overwritten}
        # Beside buffers, what stays is copied too: read where it lies, it would bring the file's pages back every step.
        held = {name: array.copy() for name, array in initial.items() if self._buffers and name not in self._buffers}
        self._first = initial
        self.initial: dict[str, Tensor] = {
            name: device.tensor(held.get(name, array)) for name, array in initial.items()
        }
        own = {name: device.tensor(array) for name, array in self._buffers.items()}
        self.tensors: dict[str, Tensor] = {**self.initial, **own}
        self._torn = False
        self._leave_first_on_disk()

    def arrays(self) -> dict[str, np.ndarray]:
        """The state for reading, valid until it changes."""
        return {name: self._device.array(tensor) for name, tensor in self.tensors.items()}

    def refuse_torn(self) -> None:
        """Raise RuntimeMissingError if a failure left some tensors of one step beside others of the next."""
        if self._torn:
            raise RuntimeMissingError(
                "the state is half of one step and half of the next: the engine failed while a step was committed",
                where=self._where,
                hint="call `reset()`, or `restore` a saved state",
            )

    def reset(self) -> None:
        """Back to what was compiled."""
        self._take(self._first, self.initial)
        self._leave_first_on_disk()

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the values of `arrays`, which are those of the state table."""
        others = {name: array for name, array in arrays.items() if name not in self._buffers}
        self._take(arrays, {name: self._device.tensor(array.copy()) for name, array in others.items()})

    def commit(self, pending: Mapping[str, Tensor], late: Sequence[Late]) -> bool:
        """Make the pending tensors, and what the late runs give, the state if all are finite; whether they were.

        Raises:
            VerificationError: a graph made a tensor that is not as the state table says; nothing changed.
            RuntimeMissingError: the engine failed.  Nothing changed, unless it failed at a run that it had just
                finished: then the state is torn, and refused until it is reset or restored.
        """
        if not self._are_finite(pending) or not all(self._are_finite(run()) for run in late):
            return False
        moved = {name: self._owned(tensor) for name, tensor in pending.items() if name not in self._buffers}
        copied = {name: self._device.array(tensor) for name, tensor in pending.items() if name in self._buffers}
        if late or copied:
            _uninterrupted(lambda: self._overwrite(late, copied, moved))
        else:
            self.tensors = {**self.tensors, **moved}
        return True

    def _overwrite(self, late: Sequence[Late], copied: Mapping[str, np.ndarray], moved: Mapping[str, Tensor]) -> None:
        for run in late:
            made = run()
            # The same nodes on the same numbers, so a difference means a graph that draws random ones.
            if not self._are_finite(made):
                what = "a graph gave a finite state at first and another one when it ran again"
                raise VerificationError(what, where=self._where, hint=HINT)
            self._torn = True
            for name, tensor in made.items():
                np.copyto(self._buffers[name], self._device.array(tensor))
            del made
            run.release()
        self._torn = True
        for name, array in copied.items():
            np.copyto(self._buffers[name], array)
        self.tensors = {**self.tensors, **moved}
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
        """What large tensors were at first is wanted by a reset only."""
        if self._buffers:
            leave_on_disk(self._first.values())

    def _are_finite(self, tensors: Mapping[str, Tensor]) -> bool:
        arrays = {name: self._device.array(tensor) for name, tensor in tensors.items()}
        for name, array in arrays.items():
            spec = self._specs[name]
            if (str(array.dtype), array.shape) != (spec.dtype, spec.shape):
                made, told = f"{array.dtype} {list(array.shape)}", f"{spec.dtype} {list(spec.shape)}"
                what = f"a graph made state `{name}` {made}, the state table says {told}"
                raise VerificationError(what, where=self._where, hint=HINT)
        return all(is_finite(array) for array in arrays.values())

    def _owned(self, tensor: Tensor) -> Tensor:
        """The tensor; a small one copied out of the engine's arena.

        What lives on between the runs would break up the room the residuals need.  Of a large tensor, a copy would cost
        more than its gap.
        """
        array = self._device.array(tensor)
        return self._device.tensor(array.copy()) if array.nbytes < LARGE else tensor


def _uninterrupted(work: Callable[[], None]) -> None:
    """Do `work` in a thread of its own, where no Ctrl-C arrives; one that came meanwhile is raised when it is done."""
    interrupt: KeyboardInterrupt | None = None
    with ThreadPoolExecutor(1) as worker:
        done = worker.submit(work)
        while not done.done():
            interrupt = _interrupt_during(done) or interrupt
    done.result()
    if interrupt is not None:
        raise interrupt


def _interrupt_during(work: Future[None]) -> KeyboardInterrupt | None:
    """The Ctrl-C that came while `work` was going on, if one did."""
    try:
        wait([work])
    except KeyboardInterrupt as interrupt:
        return interrupt
    return None
