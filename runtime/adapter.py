"""The adapter: a model that predicts and adapts, one batch at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ttac.errors import RuntimeMissingError, UsageError
from ttac.runtime.bundle import REPORT, Bundle, open_bundle, report_of
from ttac.runtime.commit import State
from ttac.runtime.engine import EngineDevice, EngineSettings, present
from ttac.runtime.events import COUNTERS, RESET, RETURN, Event, counted, counters, events, log, warn_of_one
from ttac.runtime.executor import Executor
from ttac.runtime.finite_samples import FiniteSamples, sample_count
from ttac.runtime.inputs import check_inputs, thread_count
from ttac.runtime.json_values import HINT
from ttac.runtime.program.bind import overwritten
from ttac.runtime.program.perform import Step
from ttac.runtime.providers import Provider
from ttac.runtime.records import WEIGHTS, TensorSpec
from ttac.runtime.replacement import read_unreplaced
from ttac.runtime.state_files import check_plausible, read_state, write_state
from ttac.runtime.tensors import check_tensors, parse_tensors

Outputs = Any
"""An array of a model with one output, a dict (name to array) of a model with several outputs."""

REJECTED_IN_A_ROW = 10
"""Consecutive rejected steps after which the state is reset; a state that rejects every step would stay for ever."""


class Adapter:
    """Runs a bundle.

    Several threads may call `step`, `predict`, `reset`, `save`, `restore`, `stats` and `close`; a lock admits one call
    at a time.  The adapter keeps small files in private memory and maps large ones.  A write to a mapped file makes the
    next call raise VerificationError.  A bundle that replaces the folder does not concern the adapter.

    `with ttac.load(path) as adapter:` closes the adapter at the end of the block.

    A function set as `on_event` gets a `ttac.runtime.events.Event` at each transition of the guard, at the end of the
    step.  The logger `ttac` gets the same events: a reset is a warning, the others are information.

    Args:
        path: the bundle, a folder or the file of `ttac pack`; the hash of every file is verified.
        threads: threads inside an operator; None means the target's count, 0 the engine's choice.
        settings: session settings for experiments; its `threads` counts if `threads` is None.
        form: "portable" for graphs of standard operators, "blocked" for graphs in the engine's internal layout,
            "kernels" for blocked graphs with nodes of `ttac-kernels`, "auto" for the fastest of these that runs here.
            The first step is compared with the portable graphs: logits and new state.  If it differs, the adapter
            changes to the portable graphs, and `stats` gives the reason.
            With "auto", the folder remembers the result for this engine and processor in `form-cache.json`.
        compare: False for a form without this comparison, which needs the memory of both: for measurements of the form.

    Raises:
        UsageError: there is no bundle at `path`, or `threads` is not a count.
        RuntimeMissingError: no usable engine, or the bundle needs another ttac or engine.
        VerificationError: a file of the bundle does not fit the manifest.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        settings: EngineSettings | None = None,
        form: str = "auto",
        *,
        compare: bool = True,
    ) -> None:
        self.path = Path(path)
        self._lock, self._process, self._closed = threading.RLock(), os.getpid(), False
        self._autosave: tuple[Path, int] | None = None
        self.on_event: Callable[[Event], object] | None = None
        read_unreplaced(self.path, lambda: self._open(threads, settings, form, compare))

    def _open(self, threads: int | None, settings: EngineSettings | None, form: str, compare: bool) -> None:
        self._opened = open_bundle(self.path)
        self._manifest = self._opened.manifest
        self._device = EngineDevice()
        settings = settings or self._target_settings()
        self.threads = thread_count(threads, settings.threads or self._manifest.threads)
        updates = {name: graph.state for name, graph in self._manifest.graphs.items()}
        deferred = {name for words in self._manifest.programs.values() for name in overwritten(words, updates)}
        state, place = self._manifest.state, f"`{self.path}`"
        self._state = State(self._device, self._initial_state(), state, sorted(deferred), place)
        settings = replace(settings, threads=self.threads)
        self.providers: list[Provider] = list(settings.providers)
        self._executor = Executor(self.path, self._opened, settings, self._device, self._state, form, compare=compare)
        self._opened.files.keep_only({WEIGHTS, REPORT, self._manifest.state_file})
        self._stats = self._fresh_stats()
        self._announced: dict[str, float] = {}  # counters of the guard: a restored state brings larger or smaller ones
        self._rejected_in_a_row = 0

    def _target_settings(self) -> EngineSettings:
        """The default settings with the providers of the bundle's target that the engine has, and the CPU."""
        names = self._manifest.providers
        return EngineSettings(providers=tuple(present([*names, "cpu"]))) if names else EngineSettings()

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
        return Bundle(self.path, self._manifest.raw, report_of(self._opened, self.path))

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
        """Shape of one sample of the first input with samples; open sizes are the largest ones."""
        spec = next(spec for spec in self.inputs if spec.batch_axis is not None)
        return tuple(size for size in self._manifest.largest(spec) if isinstance(size, int))

    @property
    def stats(self) -> dict[str, Any]:
        """Counters since the bundle was loaded or reset; a new dict at each reading.

        steps: calls of `step`.
        samples: samples in these calls.
        rejected: steps whose new state was not finite and was dropped.
        not_finite: samples with NaN or infinite values; their rows of the output are NaN.
        resets: resets of the state after `REJECTED_IN_A_ROW` consecutive rejections.
        milliseconds: time of the last step.
        information: information of the last batch in nats, as the guard judges it; near 0 for noise or a collapse.
        held: batches that the guard held, `held_in_a_row` of them last; guard_resets: its resets of the state.
        check_loss: mean of 1 - p/m over this round's calibration samples, p of the source's class, m of the likeliest;
        guard_returns: times that the check turned the state back.
        drift: distance of the trained tensors from the source, in units of the source's length.
        form: name of the form that runs; form_reason: why that is the portable one in a bundle that has others.
        Further scalars (such as `entropy`) are the last report of the graphs.
        """
        with self._turn():
            return {**self._stats, **self._executor.choice.stats}

    def step(self, x: np.ndarray | Mapping[str, np.ndarray]) -> Outputs:
        """Predict and adapt: inputs [n, ...] -> outputs [n, ...], n from the smallest to the planned batch.

        A model with one input takes an array, with several a dict, name to array; outputs are given likewise.

        A sample with NaN or infinite values gets a row of NaN in the output, of 0 where the output has integers.  The
        step learns from the other samples; it only predicts if fewer than the smallest batch are left.

        The state changes only if the whole step succeeds and all new values are finite.  After `REJECTED_IN_A_ROW`
        consecutive steps with other values, the state resets itself and the logger `ttac` warns.  An interrupt (Ctrl-C)
        comes before the change, or waits until the change is complete.

        Raises:
            UsageError: the input does not fit the model; the state is unchanged.
            RuntimeMissingError: the engine failed; the state is unchanged.  With all weights trained, the engine can
                also fail while the state is written.  Then each call raises until `reset` or `restore`.
        """
        with self._turn():
            self._state.refuse_torn()
            self._opened.files.check_unchanged()
            inputs = check_inputs(x, self._manifest)
            batch = FiniteSamples.of(inputs, self.inputs, self.smallest_batch)
            self._executor.confirm(batch.inputs)
            start = time.perf_counter()
            outputs, step = self._predict(batch, "step" if batch.learns else "predict")
            adapted = step is None or self._state.commit(step.pending, step.deferred)
            reset = self._reset_if_stuck(adapted)
            counts = {"steps": 1, "samples": sample_count(inputs, self.inputs), "rejected": not adapted}
            counts |= {"resets": reset, "not_finite": batch.dropped}
            milliseconds = 1e3 * (time.perf_counter() - start)
            self._count(counts, {"milliseconds": milliseconds, **(step.reported if step else {})})
            self._autosave_if_due()
            return outputs

    def predict(self, x: np.ndarray | Mapping[str, np.ndarray]) -> Outputs:
        """Predict with the adapted state; change neither state nor stats; otherwise like `step`."""
        with self._turn():
            self._state.refuse_torn()
            self._opened.files.check_unchanged()
            batch = FiniteSamples.of(check_inputs(x, self._manifest), self.inputs, self.smallest_batch)
            self._executor.confirm(batch.inputs)
            return self._predict(batch, "predict")[0]

    def reset(self) -> None:
        """Set the state to the exact compiled values, and all counters to zero."""
        with self._turn():
            self._state.reset()
            self._stats, self._announced, self._rejected_in_a_row = self._fresh_stats(), {}, 0

    def save(self, path: str | Path) -> None:
        """Write the adapted state as a safetensors file, whole or not at all; the old file stays as `<path>.previous`.

        Raises UsageError if the file cannot be written; the old file is unchanged then.
        """
        with self._turn():
            self._state.refuse_torn()
            write_state(path, self._state.arrays(), self._manifest.identity)

    def autosave(self, path: str | Path, every: int) -> None:
        """Save the state to `path` after each `every` steps; `every=0` ends this.

        The logger `ttac` warns of a state that cannot be written, and the stream goes on.  Raises UsageError for an
        `every` that is no count.
        """
        if not isinstance(every, int) or every < 0:
            raise UsageError(f"`every` is {every!r}, not a count", where="`autosave`", hint="give a number of steps")
        with self._turn():
            self._autosave = (Path(path), every) if every else None

    def restore(self, path: str | Path) -> None:
        """Set the state to a file of `save`; the counters go on.

        Raises:
            UsageError: there is no such file, or its state belongs to another model, method or settings.
            VerificationError: the file is damaged, or its tensors are not plausible; the state is unchanged.
        """
        arrays = read_state(path, self._manifest)
        with self._turn():
            self._state.restore(arrays)
            self._announced = counters(self._manifest.graphs.values(), arrays)
            self._stats |= self._counted()
            self._rejected_in_a_row = 0

    def close(self) -> None:
        """Free the sessions, the state and the mapped files; waits for a running call.

        Each later call but `close` raises UsageError.  The end of a `with` block closes its adapter.
        """
        if os.getpid() != self._process:
            return  # the engine's threads do not exist in a forked child, so its sessions cannot be freed there
        with self._lock:
            if not self._closed:
                self._closed = True
                del self._executor, self._state
                self._opened.files.keep_only({REPORT})

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """A line with the bundle, its method, the planned batch, the steps and the form."""
        state = "closed" if self._closed else f"step {self._stats['steps']}, {self._executor.choice.name}"
        method = self._manifest.raw["method"]["name"]
        return f"<Adapter {self.path}: {method}, up to {self.batch} samples a step, {state}>"

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the lock.

        Raises RuntimeMissingError in a forked child, where the engine's threads do not exist, and UsageError after
        `close`.
        """
        if os.getpid() != self._process:
            problem = "the adapter belongs to the parent process, and the engine's threads do not survive a fork"
            hint = "call `ttac.load` in the child, or start children with the method `spawn`"
            raise RuntimeMissingError(problem, where=f"`{self.path}`", hint=hint)
        with self._lock:
            if self._closed:
                raise UsageError("the adapter is closed", where=f"`{self.path}`", hint="call `ttac.load` again")
            yield

    def _count(self, counts: Mapping[str, int], figures: Mapping[str, float]) -> None:
        """Add the `counts` of a step to the stats, replace the `figures`, and announce the events."""
        before, announced = self._stats, self._announced
        kept = {} if counts["rejected"] else figures  # a rejected step leaves the counters in the state as they were
        if not before["steps"]:
            warn_of_one(self.path, self._manifest.raw, counts["samples"])
        self._stats = {**before, **{name: before[name] + count for name, count in counts.items()}, **figures}
        self._announced = {**announced, **{name: kept[name] for name in COUNTERS if name in kept}}
        for event in events({**before, **announced}, {**self._stats, **self._announced}):
            log("WARNING" if event.kind in (RESET, RETURN) else "INFO", "`%s`: %s", self.path, event)
            if self.on_event is not None:
                self.on_event(event)
        if counts["resets"]:
            self._announced = dict.fromkeys(self._announced, 0.0)
            self._stats |= self._counted()

    def _fresh_stats(self) -> dict[str, Any]:
        """The stats before the first step: counters of zero, and the reports of the state."""
        zero = {"steps": 0, "samples": 0, "rejected": 0, "resets": 0, "not_finite": 0, "milliseconds": 0.0}
        return {**zero, **self._counted()}

    def _counted(self) -> dict[str, float]:
        """The reports that the state has before their graphs run."""
        return counted(self._manifest.graphs.values(), self._state.arrays())

    def _autosave_if_due(self) -> None:
        """Write the state after each `every` steps; a failure is a warning, and the step goes on."""
        if self._autosave is None or self._stats["steps"] % self._autosave[1]:
            return
        try:
            self.save(self._autosave[0])
        except UsageError as error:
            log("WARNING", "`%s`: the state is not saved: %s", self.path, error)

    def _reset_if_stuck(self, adapted: bool) -> bool:
        """Reset the state after too many consecutive rejections; returns whether it did."""
        self._rejected_in_a_row = 0 if adapted else self._rejected_in_a_row + 1
        if self._rejected_in_a_row < REJECTED_IN_A_ROW:
            return False
        self._state.reset()
        self._rejected_in_a_row = 0
        log("WARNING", "`%s`: %d consecutive steps were rejected; the state is reset", self.path, REJECTED_IN_A_ROW)
        return True

    def _predict(self, batch: FiniteSamples, program: str) -> tuple[Outputs, Step | None]:
        """The outputs for all samples of the user, and the step; no step without a finite sample."""
        arrays, step = (
            self._executor.perform(program, batch.inputs) if batch.inputs else (batch.blank(self.outputs), None)
        )
        arrays = batch.spread(arrays, self.outputs) if step else arrays
        if len(arrays) == 1:
            return arrays[0], step
        return {spec.name: array for spec, array in zip(self.outputs, arrays)}, step

    def _initial_state(self) -> dict[str, np.ndarray]:
        path = self.path / self._manifest.state_file
        arrays, _ = parse_tensors(self._opened.files.content(self._manifest.state_file), f"`{path}`")
        check_tensors(arrays, self._manifest.state, f"`{path}`")
        check_plausible(arrays, f"`{path}`", HINT)
        return arrays
