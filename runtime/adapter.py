"""The adapter: a model that predicts and adapts, one batch at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ttac.errors import UsageError, VerificationError
from ttac.runtime.bundle import Bundle, inside, open_bundle
from ttac.runtime.checks import HINT
from ttac.runtime.engine import Device, EngineSettings, Port, Session
from ttac.runtime.inputs import check_inputs
from ttac.runtime.manifest import WEIGHTS, GraphSpec, Manifest, TensorSpec
from ttac.runtime.program import Step, Tensor, World, bind, graphs_of, overwritten
from ttac.runtime.state import State
from ttac.runtime.tensors import check_tensors, first_not_finite, map_tensors, save_tensors

IDENTITY, BUNDLE_KEY = "ttac-state-1", "bundle"


class Adapter:
    """Runs a bundle.

    `step`, `predict`, `reset`, `save`, `restore` and `stats` may be called from several threads; a lock lets one in at
    a time.  The folder must stay as it is while the adapter lives: weights are read from the mapped file.

    Args:
        path: the bundle's folder; every file's hash is verified.
        threads: threads inside an operator; None takes the target's, 0 leaves it to the engine.
        settings: how sessions are made, for experiments; its threads count where `threads` is None.

    Raises:
        UsageError: there is no bundle at `path`, or `threads` is not a count.
        RuntimeMissingError: no usable engine, or the bundle needs a newer ttac or engine.
        VerificationError: the bundle is not what its manifest says.
    """

    def __init__(self, path: str | Path, threads: int | None = None, settings: EngineSettings | None = None) -> None:
        self.path = Path(path)
        self._manifest = open_bundle(self.path)
        self._lock = threading.RLock()
        self._device = Device()
        self._graphs = self._sessions(_settled(settings or EngineSettings(), threads, self._manifest.threads))
        self._weights = self._mapped_weights()
        late = {name for words in self._manifest.programs.values() for name in overwritten(words, self._graphs)}
        state, place = self._manifest.state, f"`{self.path}`"
        self._state = State(self._device, self._initial_state(), state, sorted(late), place)
        world = self._world()
        self._programs = {
            name: bind(words, world, f"programs.{name}") for name, words in self._manifest.programs.items()
        }
        self._stats: dict[str, Any] = _no_stats()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return self._manifest.inputs

    @property
    def output(self) -> TensorSpec:
        """What the model gives: the logits."""
        return self._manifest.output

    @property
    def bundle(self) -> Bundle:
        """The bundle as written: its path, manifest and report."""
        return Bundle.read(self.path)

    @property
    def batch(self) -> int:
        """Samples a step may have at most, and is planned for."""
        return self._manifest.planned

    @property
    def smallest_batch(self) -> int:
        """Samples a step must have at least."""
        return self._manifest.smallest

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the first input."""
        return tuple(int(size) for size in self._manifest.inputs[0].shape[1:])

    @property
    def stats(self) -> dict[str, Any]:
        """Counters since the bundle was loaded or reset; a new dict at each reading.

        steps: calls of `step`; samples: samples in them; rejected: steps whose new state was not finite and was
        dropped; milliseconds: time of the last step; further scalars (such as `entropy`) as the graphs last reported
        them.
        """
        with self._lock:
            return dict(self._stats)

    def step(self, x: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """Predict and adapt: inputs [n, ...] -> logits [n, ...], n from the smallest to the planned batch.

        The state changes only when the whole step went through and is finite.  An interrupt (Ctrl-C) either comes
        before that or waits until it is done.

        Raises:
            UsageError: the input is not what the model takes; nothing changed.
            RuntimeMissingError: the engine failed; nothing changed.  Or, with all weights trained, it failed at work
                that it had just done once, while the state was written: then each call says so until `reset` or
                `restore`.
        """
        with self._lock:
            self._state.refuse_torn()
            inputs = check_inputs(x, self._manifest)
            start = time.perf_counter()
            logits, step = self._perform("step", inputs)
            adapted = self._state.commit(step.pending, step.late)
            samples = len(next(iter(inputs.values())))
            self._stats = {
                **self._stats,
                "steps": self._stats["steps"] + 1,
                "samples": self._stats["samples"] + samples,
                "rejected": self._stats["rejected"] + (not adapted),
                "milliseconds": 1e3 * (time.perf_counter() - start),
                **step.reported,
            }
            return logits

    def predict(self, x: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """Predict with the adapted state and change nothing: neither state nor stats; otherwise like `step`."""
        with self._lock:
            self._state.refuse_torn()
            return self._perform("predict", check_inputs(x, self._manifest))[0]

    def reset(self) -> None:
        """Back to exactly the state that was compiled, with all counters at zero."""
        with self._lock:
            self._state.reset()
            self._stats = _no_stats()

    def save(self, path: str | Path) -> None:
        """Write the adapted state as a safetensors file, whole or not at all; raises UsageError if it cannot."""
        with self._lock:
            self._state.refuse_torn()
            save_tensors(Path(path), self._state.arrays(), {"format": IDENTITY, BUNDLE_KEY: self._manifest.identity})

    def restore(self, path: str | Path) -> None:
        """Take the state that `save` wrote; the counters go on.

        Raises:
            UsageError: there is no such file, or it is the state of another model, method or settings.
            VerificationError: the file is damaged, or its tensors are not those of the state table.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError("there is no such state", where=f"`{path}`", hint="`adapter.save(path)` writes one")
        arrays, metadata = map_tensors(path)
        if metadata.get(BUNDLE_KEY) != self._manifest.identity:
            raise UsageError(
                "the state belongs to another model, method or settings",
                where=f"`{path}`",
                hint="restore it into the bundle it was saved from, or into one compiled with the same settings",
            )
        check_tensors(arrays, self._manifest.state, f"`{path}`")
        if name := first_not_finite(arrays):
            raise VerificationError(f"`{name}` is not finite", where=f"`{path}`", hint="save the state again")
        with self._lock:
            self._state.restore(arrays)

    def _perform(self, program: str, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Step]:
        step = Step(self._world(), {name: self._device.tensor(array) for name, array in inputs.items()})
        found = step.perform(self._programs[program])
        assert found is not None, "parse_program checked that every path returns"
        logits = self._device.array(found).copy()
        step.values = {}
        return logits, step

    def _world(self) -> World:
        inputs = frozenset(spec.name for spec in self._manifest.inputs)
        state = self._state
        return World(self._device, self._graphs, inputs, state.tensors, state.initial, self._weights)

    def _initial_state(self) -> dict[str, np.ndarray]:
        path = inside(self.path, self._manifest.state_file)
        arrays, _ = map_tensors(path)
        check_tensors(arrays, self._manifest.state, f"`{path}`")
        if name := first_not_finite(arrays):
            raise VerificationError(f"the initial state `{name}` is not finite", where=f"`{path}`", hint=HINT)
        return arrays

    def _mapped_weights(self) -> dict[str, Tensor]:
        """The weights that graphs take as inputs; all sessions read the same mapped memory."""
        if WEIGHTS not in self._manifest.files:
            return {}
        arrays, _ = map_tensors(inside(self.path, WEIGHTS))
        taken = {name for graph in self._graphs.values() for name in graph.inputs}
        return {name: self._device.tensor(array) for name, array in arrays.items() if name in taken}

    def _sessions(self, settings: EngineSettings) -> dict[str, LoadedGraph]:
        needed = {name for words in self._manifest.programs.values() for name in graphs_of(words)}
        # One graph has nobody to share an arena with, and that would keep what loading needed: 17 to 47 MB in all.
        settings = replace(settings, shared_arena=settings.shared_arena and len(needed) > 1)
        return {
            name: LoadedGraph(self.path, spec, self._manifest, settings)
            for name, spec in self._manifest.graphs.items()
            if name in needed
        }


class LoadedGraph:
    """One graph of the bundle in a session, with what the manifest says about its outputs."""

    def __init__(self, folder: Path, spec: GraphSpec, manifest: Manifest, settings: EngineSettings) -> None:
        level = spec.optimization or settings.optimization
        self.session = Session(inside(folder, spec.file), replace(settings, optimization=level))
        self.inputs, self.outputs = tuple(self.session.inputs), tuple(self.session.outputs)
        self.state, self.stats = spec.state, spec.stats
        self.run = self.session.run
        fits = {**manifest.state, **{spec.name: spec for spec in manifest.inputs}}
        for name, port in self.session.inputs.items():
            if name in fits and not _fits(port, fits[name]):
                _refuse_port(port, fits[name], spec)
        for name in (*spec.state, *spec.stats):
            if name not in self.session.outputs:
                raise VerificationError(
                    f"the manifest reads output `{name}`, which the graph lacks", where=f"`{spec.file}`", hint=HINT
                )


def _fits(port: Port, spec: TensorSpec) -> bool:
    """Whether the graph takes what the manifest says; a symbol in the graph takes any size."""
    sizes = zip(port.shape, spec.shape, strict=False)
    return (
        port.dtype == spec.dtype
        and len(port.shape) == len(spec.shape)
        and all(not isinstance(mine, int) or mine == theirs for mine, theirs in sizes)
    )


def _refuse_port(port: Port, spec: TensorSpec, graph: GraphSpec) -> None:
    shape = str(list(spec.shape)).replace("'", "")
    raise VerificationError(
        f"the graph takes `{port.name}` as {port.dtype} {list(port.shape)}, the manifest has {spec.dtype} {shape}",
        where=f"`{graph.file}`",
        hint=HINT,
    )


def _settled(settings: EngineSettings, threads: int | None, planned: int) -> EngineSettings:
    if threads is not None and (not isinstance(threads, int) or threads < 0):
        raise UsageError(f"`threads` is {threads!r}, not a count", where="`threads=`", hint="0 leaves it to the engine")
    return replace(settings, threads=threads if threads is not None else settings.threads or planned)


def _no_stats() -> dict[str, Any]:
    return {"steps": 0, "samples": 0, "rejected": 0, "milliseconds": 0.0}
