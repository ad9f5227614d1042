"""`ttac bench`: what a step costs in time and memory, against plain inference and, where asked for, PyTorch.

Time: a method's step and plain inference of the source model run in turn in one process, with the same number of
threads; a ratio is the median of the ratios of the turns.  Memory: `ttac.reports.measure`, a fresh process each.
"""

from __future__ import annotations

import datetime
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ttac.errors import TtacError, UsageError
from ttac.evaluation.arrays import preparation_of
from ttac.evaluation.cells import Subject
from ttac.evaluation.samples import open_source
from ttac.evaluation.source_inference import inference, measure_inference
from ttac.evaluation.subjects import Recipe, compile_subject, is_bundle, method_specs, subjects
from ttac.reports.measure import measure, random_samples
from ttac.runtime import load
from ttac.runtime.bundle import Bundle

if TYPE_CHECKING:
    from ttac.runtime.adapter import Adapter

WARM_UP, PAIRS = 2, 9
SHORTEST = 0.05
"""Seconds that a turn takes at least: shorter steps are repeated in it."""

FEWEST = 7
"""Turns that a median is taken of at least."""

PACKAGES = ("ttac", "onnxruntime-training-cpu", "onnxruntime", "onnx", "torch", "numpy")


class Peers(Protocol):
    """The same methods elsewhere; `benchmarks.peers` has those in PyTorch."""

    name: str

    def step(self, model: Path, manifest: Mapping[str, Any], threads: int) -> Callable[[np.ndarray], object] | None:
        """What does the step of the manifest's method on the network of the file; None where it has no re-statement."""

    def memory(self, model: Path, manifest: Mapping[str, Any], threads: int) -> Mapping[str, Any] | None:
        """Bytes `peak` and `loaded` of that step in a fresh process."""


@dataclass(frozen=True)
class Figures:
    """One method on one model at one batch, in milliseconds, bytes and ratios to plain inference.

    Attributes:
        ratio: median over the turns; spread: their first and third quartile.
        memory: `peak` and `loaded` of the step; inference: those of plain inference; None where they cannot be told.
        residuals: bytes planned to be kept between forward and backward.
        cache: what papers publish as the cache: bytes of the cached inputs of all layers; None for bundles without it.
        peer: the same figures elsewhere: `milliseconds`, `ratio`, `peak`, `loaded`.
    """

    model: str
    method: str
    batch: int
    inference_ms: float
    step_ms: float
    ratio: float
    spread: tuple[float, float]
    memory: Mapping[str, Any] | None
    inference: Mapping[str, Any] | None
    residuals: int | None
    cache: int | None
    compile_seconds: float | None
    peer: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The figures by name."""
        return {**self.__dict__, "spread": list(self.spread)}


@dataclass(frozen=True)
class Benchmark:
    """All figures, what they hold for, and what could not be measured and why."""

    figures: Sequence[Figures]
    about: Mapping[str, str]
    peers: str = ""
    missing: Sequence[tuple[str, str, TtacError]] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything for programs."""
        missing = [{"model": m, "method": method, "reason": why.what} for m, method, why in self.missing]
        return {"about": dict(self.about), "rows": [each.as_json() for each in self.figures], "missing": missing}

    def write_html(self, path: str | Path) -> None:
        """Write one page that holds everything it shows; raises RuntimeMissingError without the extra `eval`."""
        from ttac.evaluation.bench_report import page

        Path(path).write_text(page(self), encoding="utf-8")


@dataclass
class Bench:
    """The options of one benchmark.

    Attributes:
        methods: as for `ttac.evaluate`; batch: samples of a step, one or several, 8 or what a bundle is planned for.
        options: further arguments of `ttac.compile`.
        pairs: turns that are timed; threads: of the engine in all of them.
        data: samples, as for `ttac.evaluate`, whose first ones are a step's; None for random numbers.
        peers: the same methods elsewhere, None for none.
        say: gets one line for each thing that is measured.
    """

    methods: Sequence[str] = ("tent",)
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch: Sequence[int] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    pairs: int = PAIRS
    threads: int = 0
    data: Any = None
    peers: Peers | None = None
    say: Callable[[str], object] = lambda line: None

    def run(self, models: Sequence[Path]) -> Benchmark:
        """Measure bundles, and models with every method.

        Raises UsageError for a name that does not exist or too few pairs; what a method refuses is told in `missing`.
        """
        if self.pairs < FEWEST:
            what = f"{self.pairs} pairs are too few for a median"
            raise UsageError(what, where="`--pairs`", hint=f"give {FEWEST} or more")
        threads = self.threads or os.cpu_count() or 1
        figures: list[Figures] = []
        missing: list[tuple[str, str, TtacError]] = []
        with tempfile.TemporaryDirectory(prefix="ttac-bench-") as folder:
            sizes = list(self.batch) or ([] if all(map(is_bundle, models)) else [8])
            specs = method_specs(self.methods, self.settings)
            found, recipes = subjects(models, specs, sizes, self.options, Path(folder))
            seconds = self._compiled(found, recipes, missing)
            ready = [subject for subject in found if subject.bundle in seconds]
            for group in dict.fromkeys((subject.model, subject.batch) for subject in ready):
                same = [subject for subject in ready if (subject.model, subject.batch) == group]
                figures.extend(self._measured(same, recipes, seconds, threads))
        return Benchmark(figures, about(threads), self.peers.name if self.peers else "", missing)

    def _compiled(
        self, found: Sequence[Subject], recipes: Mapping[Path, Recipe], missing: list[tuple[str, str, TtacError]]
    ) -> dict[Path, float | None]:
        """Compile what is no bundle yet; seconds by bundle, None for those that were given."""
        seconds: dict[Path, float | None] = {}
        for subject in found:
            if subject.bundle not in recipes:
                seconds[subject.bundle] = None
                continue
            self.say(f"compiling {subject.model} with {subject.method}, batch {subject.batch}")
            start = time.perf_counter()
            try:
                compile_subject(recipes[subject.bundle])
                seconds[subject.bundle] = time.perf_counter() - start
            except TtacError as error:
                missing.append((subject.model, subject.method, error))
        return seconds

    def _measured(
        self,
        group: Sequence[Subject],
        recipes: Mapping[Path, Recipe],
        seconds: Mapping[Path, float | None],
        threads: int,
    ) -> list[Figures]:
        """The figures of all methods of one model at one batch, timed in turn with each other."""
        first = group[0]
        self.say(f"timing {first.model}, batch {first.batch}")
        source = recipes[first.bundle].model if first.bundle in recipes else first.bundle / "infer.onnx"
        adapters = {subject.bundle: load(subject.bundle, threads=threads) for subject in group}
        shape = adapters[first.bundle].input_shape
        x = self._samples(first, shape)
        plain, elsewhere = inference(source, threads), self._elsewhere(group, recipes, threads)
        times = {bundle: paired(lambda: plain(x), _stepping(each, x), self.pairs) for bundle, each in adapters.items()}
        peers = {bundle: paired(lambda: plain(x), _calling(step, x), self.pairs) for bundle, step in elsewhere.items()}
        adapters.clear()
        self.say(f"measuring the memory of {first.model}, batch {first.batch}")
        base = measure_inference(source, first.batch, shape, threads)
        with tempfile.TemporaryDirectory(prefix="ttac-bench-") as folder:
            file = Path(folder) / "samples.npy"
            np.save(file, x)
            memory = {subject.bundle: _memory(subject, threads, file) for subject in group}
        return [
            self._figures(
                subject,
                times[subject.bundle],
                memory[subject.bundle],
                base,
                seconds[subject.bundle],
                self._peer(subject, recipes, peers.get(subject.bundle), threads),
            )
            for subject in group
        ]

    def _samples(self, subject: Subject, shape: tuple[int, ...]) -> np.ndarray:
        """What a step gets, [batch, *shape]; raises UsageError when the data do not fit."""
        if self.data is None:
            return random_samples(subject.batch, shape)
        source, how = open_source(self.data), preparation_of(subject.bundle)
        if source.count < subject.batch:
            what = f"there are {source.count} samples, a step takes {subject.batch}"
            raise UsageError(what, where="`--data`", hint="give more samples, or a smaller `--batch`")
        x = source.read(source.variants[-1], np.arange(subject.batch), how)
        prepared: np.ndarray = how.prepare(x) if x.dtype == np.uint8 else x
        return prepared

    def _figures(
        self,
        subject: Subject,
        times: Times,
        memory: Mapping[str, Any] | None,
        base: Mapping[str, Any] | None,
        compiled: float | None,
        peer: Mapping[str, Any] | None,
    ) -> Figures:
        bundle = Bundle.read(subject.bundle)
        planned = bundle.report.get("planned", {})
        return Figures(
            subject.model,
            subject.method,
            subject.batch,
            inference_ms=1e3 * float(np.median(times.plain)),
            step_ms=1e3 * float(np.median(times.step)),
            ratio=float(np.median(times.ratios)),
            spread=(float(np.quantile(times.ratios, 0.25)), float(np.quantile(times.ratios, 0.75))),
            memory=memory,
            inference=base,
            residuals=planned.get("residuals"),
            cache=_published_cache(bundle),
            compile_seconds=compiled,
            peer=peer,
        )

    def _elsewhere(
        self, group: Sequence[Subject], recipes: Mapping[Path, Recipe], threads: int
    ) -> dict[Path, Callable[[np.ndarray], object]]:
        """The steps of the peers by bundle, of those that they have."""
        if self.peers is None:
            return {}
        found = {}
        for subject in group:
            if subject.bundle in recipes:
                manifest = Bundle.read(subject.bundle).manifest
                step = self.peers.step(recipes[subject.bundle].model, manifest, threads)
                if step is not None:
                    found[subject.bundle] = step
        return found

    def _peer(
        self, subject: Subject, recipes: Mapping[Path, Recipe], times: Times | None, threads: int
    ) -> dict[str, Any] | None:
        if times is None or self.peers is None:
            return None
        manifest = Bundle.read(subject.bundle).manifest
        memory = self.peers.memory(recipes[subject.bundle].model, manifest, threads) or {}
        return {
            "milliseconds": 1e3 * float(np.median(times.step)),
            "ratio": float(np.median(times.ratios)),
            "peak": memory.get("peak"),
            "loaded": memory.get("loaded"),
        }


@dataclass(frozen=True)
class Times:
    """Seconds of plain inference and of a step, element i of both from the same turn."""

    plain: np.ndarray
    step: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """Step over inference, turn by turn."""
        ratios: np.ndarray = self.step / self.plain
        return ratios


def paired(plain: Callable[[], object], step: Callable[[], object], pairs: int = PAIRS) -> Times:
    """Both in turn, `pairs` times after a warm-up; each comes first every other time."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    start = time.perf_counter()
    for _ in range(WARM_UP):
        plain()
        step()
    repeats = max(1, math.ceil(SHORTEST * WARM_UP / (time.perf_counter() - start)))
    for turn in range(pairs):
        for stepping in (False, True) if turn % 2 else (True, False):
            action = step if stepping else plain
            start = time.perf_counter()
            for _ in range(repeats):
                action()
            seconds[stepping].append((time.perf_counter() - start) / repeats)
    return Times(np.array(seconds[False]), np.array(seconds[True]))


def _memory(subject: Subject, threads: int, samples_file: Path) -> dict[str, Any] | None:
    """Peak and loaded bytes at the planned batch; None where the subject takes another one.

    A method that learns from certain samples only may find none here.  The compile measured a step that takes every
    branch, so the peak is never told as less than that.
    """
    manifest = Bundle.read(subject.bundle).manifest
    if subject.batch != manifest["batch"]["planned"]:
        return None
    found = measure(subject.bundle, threads=threads, samples=samples_file)
    stated = manifest["memory"].get("measured", {}).get("peak", 0)
    return found and {**found, "peak": max(found["peak"], stated)}


def about(threads: int) -> dict[str, str]:
    """The machine, the versions and the date that figures hold for."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(names, platform.processor())
    installed = {found.name.lower(): found.version for found in metadata.distributions() if found.name}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores of {processor}",
        "packages": ", ".join(f"{package} {installed[package]}" for package in PACKAGES if package in installed),
        "threads": str(threads),
    }


def _stepping(adapter: Adapter, x: np.ndarray) -> Callable[[], object]:
    return lambda: adapter.step(x)


def _calling(step: Callable[[np.ndarray], object], x: np.ndarray) -> Callable[[], object]:
    return lambda: step(x)


def _published_cache(bundle: Bundle) -> int | None:
    """Bytes that papers count as the method's cache: the inputs of what it trains, or the largest input of all."""
    counted = bundle.report.get("published_cache")
    if not counted:
        return None
    sites = {str(site["name"]) for site in bundle.manifest["sites"]}
    trained = [str(t["name"]) for t in bundle.manifest["state"]["tensors"] if t["role"] == "parameter"]
    if not trained:
        return int(counted["largest_input_bytes"])
    norms_only = all(name.rpartition(".")[0] in sites for name in trained)
    return int(counted["norm_inputs_bytes" if norms_only else "all_inputs_bytes"])
