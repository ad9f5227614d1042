"""The adapter: a model that predicts and adapts, one batch at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ttac.errors import UsageError
from ttac.runtime.bundle import Bundle, open_bundle
from ttac.runtime.commit import State
from ttac.runtime.engine import Device, EngineSettings
from ttac.runtime.hash_check import inside
from ttac.runtime.inputs import check_inputs
from ttac.runtime.json_values import HINT
from ttac.runtime.loaded_graph import LoadedGraph
from ttac.runtime.program.bind import bind, overwritten
from ttac.runtime.program.perform import Step
from ttac.runtime.program.words import graphs_of
from ttac.runtime.program.world import Tensor, World
from ttac.runtime.records import WEIGHTS, TensorSpec
from ttac.runtime.state_files import check_plausible, read_state, write_state
from ttac.runtime.tensors import check_tensors, map_tensors

Outputs: TypeAlias = Any
"""An array of a model with one output, a dict (name to array) of a model with several outputs."""

REJECTED_IN_A_ROW = 10
"""Consecutive rejected steps after which the state is reset; a state that rejects every step would stay for ever."""


class Adapter:
    """Runs a bundle.

    Several threads may call `step`, `predict`, `reset`, `save`, `restore` and `stats`; a lock admits one call at a
    time. The files of the folder must not change while the adapter exists: weights are read from the mapped file.

    Args:
        path: the bundle's folder; the hash of every file is verified.
        threads: threads inside an operator; None means the target's count, 0 the engine's choice.
        settings: session settings for experiments; its `threads` counts if `threads` is None.

    Raises:
        UsageError: there is no bundle at `path`, or `threads` is not a count.
        RuntimeMissingError: no usable engine, or the bundle needs another ttac or engine.
        VerificationError: a file of the bundle does not fit the manifest.
    """

    def __init__(self, path: str | Path, threads: int | None = None, settings: EngineSettings | None = None) -> None:
        self.path = Path(path)
        self._manifest = open_bundle(self.path)
        self._lock = threading.RLock()
        self._device = Device()
        self._graphs = self._sessions(_settled(settings or EngineSettings(), threads, self._manifest.threads))
        self._weights = self._mapped_weights()
        deferred = {name for words in self._manifest.programs.values() for name in overwritten(words, self._graphs)}
        state, place = self._manifest.state, f"`{self.path}`"
        self._state = State(self._device, self._initial_state(), state, sorted(deferred), place)
        world = self._world()
        self._programs = {
            name: bind(words, world, f"programs.{name}") for name, words in self._manifest.programs.items()
        }
        self._stats: dict[str, Any] = _no_stats()
        self._rejected_in_a_row = 0

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the model."""
        return self._manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of the model."""
        return self._manifest.outputs

    @property
    def output(self) -> TensorSpec:
        """The output that the loss reads: the logits; the first output for a method without a loss."""
        return self._manifest.output

    @property
    def bundle(self) -> Bundle:
        """The bundle as written: its path, manifest and report."""
        return Bundle.read(self.path)

    @property
    def batch(self) -> int:
        """Most samples of a step; memory is planned for this count."""
        return self._manifest.planned

    @property
    def smallest_batch(self) -> int:
        """Fewest samples of a step."""
        return self._manifest.smallest

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the first input."""
        return tuple(int(size) for size in self._manifest.inputs[0].shape[1:])

    @property
    def stats(self) -> dict[str, Any]:
        """Counters since the bundle was loaded or reset; a new dict at each reading.

        steps: calls of `step`.
        samples: samples in these calls.
        rejected: steps whose new state was not finite and was dropped.
        resets: resets of the state after `REJECTED_IN_A_ROW` consecutive rejections.
        milliseconds: time of the last step.
        Further scalars (such as `entropy`) are the last report of the graphs.
        """
        with self._lock:
            return dict(self._stats)

    def step(self, x: np.ndarray | Mapping[str, np.ndarray]) -> Outputs:
        """Predict and adapt: inputs [n, ...] -> outputs [n, ...], n from the smallest to the planned batch.

        A model with one output gives an array. A model with several outputs gives a dict, name to array.

        The state changes only if the whole step succeeds and all new values are finite.  After `REJECTED_IN_A_ROW`
        consecutive steps with other values, the state resets itself and the logger `ttac` warns.  An interrupt (Ctrl-C)
        comes before the change, or waits until the change is complete.

        Raises:
            UsageError: the input does not fit the model; the state is unchanged.
            RuntimeMissingError: the engine failed; the state is unchanged.  With all weights trained, the engine can
                also fail while the state is written.  Then each call raises until `reset` or `restore`.
        """
        with self._lock:
            self._state.refuse_torn()
            inputs = check_inputs(x, self._manifest)
            start = time.perf_counter()
            outputs, step = self._perform("step", inputs)
            adapted = self._state.commit(step.pending, step.deferred)
            reset = self._reset_if_stuck(adapted)
            samples = len(next(iter(inputs.values())))
            self._stats = {
                **self._stats,
                "steps": self._stats["steps"] + 1,
                "samples": self._stats["samples"] + samples,
                "rejected": self._stats["rejected"] + (not adapted),
                "resets": self._stats["resets"] + reset,
                "milliseconds": 1e3 * (time.perf_counter() - start),
                **step.reported,
            }
            return outputs

    def predict(self, x: np.ndarray | Mapping[str, np.ndarray]) -> Outputs:
        """Predict with the adapted state; change neither state nor stats; otherwise like `step`."""
        with self._lock:
            self._state.refuse_torn()
            return self._perform("predict", check_inputs(x, self._manifest))[0]

    def reset(self) -> None:
        """Set the state to the exact compiled values, and all counters to zero."""
        with self._lock:
            self._state.reset()
            self._stats = _no_stats()
            self._rejected_in_a_row = 0

    def save(self, path: str | Path) -> None:
        """Write the adapted state as a safetensors file, whole or not at all; the old file stays as `<path>.previous`.

        Raises UsageError if the file cannot be written; the old file is unchanged then.
        """
        with self._lock:
            self._state.refuse_torn()
            write_state(path, self._state.arrays(), self._manifest.identity)

    def restore(self, path: str | Path) -> None:
        """Set the state to a file of `save`; the counters go on.

        Raises:
            UsageError: there is no such file, or its state belongs to another model, method or settings.
            VerificationError: the file is damaged, or its tensors are not plausible; the state is unchanged.
        """
        arrays = read_state(path, self._manifest)
        with self._lock:
            self._state.restore(arrays)
            self._rejected_in_a_row = 0

    def _reset_if_stuck(self, adapted: bool) -> bool:
        """Reset the state after too many consecutive rejections; returns whether it did."""
        self._rejected_in_a_row = 0 if adapted else self._rejected_in_a_row + 1
        if self._rejected_in_a_row < REJECTED_IN_A_ROW:
            return False
        self._state.reset()
        self._rejected_in_a_row = 0
        _warn("`%s`: %d consecutive steps were rejected; the state is reset", self.path, REJECTED_IN_A_ROW)
        return True

    def _perform(self, program: str, inputs: Mapping[str, np.ndarray]) -> tuple[Outputs, Step]:
        values = {name: self._device.tensor(array) for name, array in inputs.items()}
        step = Step(world=self._world(), values=values)
        tensors = step.perform(self._programs[program])
        assert tensors is not None, "parse_program checked that every path returns"
        arrays = [self._device.array(tensor).copy() for tensor in tensors]
        step.values = {}
        if len(arrays) == 1:
            return arrays[0], step
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}, step

    def _world(self) -> World:
        inputs = frozenset(spec.name for spec in self._manifest.inputs)
        state = self._state
        return World(
            device=self._device,
            graphs=self._graphs,
            inputs=inputs,
            state=state.tensors,
            initial=state.initial,
            weights=self._weights,
        )

    def _initial_state(self) -> dict[str, np.ndarray]:
        path = inside(self.path, self._manifest.state_file)
        arrays, _ = map_tensors(path)
        check_tensors(arrays, self._manifest.state, f"`{path}`")
        check_plausible(arrays, f"`{path}`", HINT)
        return arrays

    def _mapped_weights(self) -> dict[str, Tensor]:
        """The weights that are graph inputs; all sessions read the same mapped memory."""
        if WEIGHTS not in self._manifest.files:
            return {}
        arrays, _ = map_tensors(inside(self.path, WEIGHTS))
        needed = {name for graph in self._graphs.values() for name in graph.inputs}
        return {name: self._device.tensor(array) for name, array in arrays.items() if name in needed}

    def _sessions(self, settings: EngineSettings) -> dict[str, LoadedGraph]:
        needed = {name for words in self._manifest.programs.values() for name in graphs_of(words)}
        # A single graph has no partner for a shared arena, and the arena would keep 17 to 47 MB of loading memory.
        settings = replace(settings, shared_arena=settings.shared_arena and len(needed) > 1)
        return {
            name: LoadedGraph(inside(self.path, spec.file), spec, self._manifest, settings)
            for name, spec in self._manifest.graphs.items()
            if name in needed
        }


def _settled(settings: EngineSettings, threads: int | None, planned: int) -> EngineSettings:
    if threads is not None and (not isinstance(threads, int) or threads < 0):
        raise UsageError(f"`threads` is {threads!r}, not a count", where="`threads=`", hint="0 leaves it to the engine")
    return replace(settings, threads=threads if threads is not None else settings.threads or planned)


def _no_stats() -> dict[str, Any]:
    return {"steps": 0, "samples": 0, "rejected": 0, "resets": 0, "milliseconds": 0.0}


def _warn(text: str, *values: object) -> None:
    import logging  # 5 ms that a load without a warning saves

    logging.getLogger("ttac").warning(text, *values)
