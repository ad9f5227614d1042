"""`ttac bench`: time and memory of a step, compared with inference of the source and, on request, with PyTorch.

Time: a method's step and inference of the source model run in turn in one process with the same number of threads; the
ratio is the median over the turns.  Memory: `ttac.reports.measure`, in a fresh process each.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ttac.errors import TtacError, UsageError
from ttac.evaluation.bench_figures import Benchmark, Figures
from ttac.evaluation.cells import Subject
from ttac.evaluation.dataset import open_dataset
from ttac.evaluation.machine import about
from ttac.evaluation.named_data import NamedInputs, open_named, preparation_of
from ttac.evaluation.source_inference import inference, measure_inference
from ttac.evaluation.subjects import MethodSpec, Recipe, compile_subject, method_specs, subjects_of
from ttac.evaluation.timing import FEWEST, PAIRS, Times, paired
from ttac.methods import DEFAULT, find
from ttac.reports.measure import measure, random_feeds
from ttac.runtime import load
from ttac.runtime.bundle import Bundle, is_bundle

if TYPE_CHECKING:
    from ttac.runtime.adapter import Adapter

BATCH = 8
"""Default number of samples of a step for models without a bundle."""

Step = Callable[[Any], object]


class Peers(Protocol):
    """The same methods in another framework, in variants; `benchmarks.peers` has those in PyTorch."""

    name: str

    def steps(self, model: Path, manifest: Mapping[str, Any], threads: int) -> Mapping[str, Step]:
        """Return the steps of the manifest's method on the network of the file, by variant; empty without it."""

    def memory(self, model: Path, manifest: Mapping[str, Any], threads: int, variant: str) -> Mapping[str, Any] | None:
        """Return `peak` and `loaded` of the variant's step in bytes, measured in a fresh process."""


@dataclass(kw_only=True)
class Bench:
    """The options of one benchmark.

    Attributes:
        methods, settings: as for `ttac.evaluate`.
        batch: numbers of samples of a step, each in turn; empty for 8, or the planned number of a bundle.
        options: further arguments of `ttac.compile`.
        pairs: number of timed turns.
        threads: threads of the engine; 0 for all cores.
        data: samples as for `ttac.evaluate`, of which a step takes the first; None for random numbers.
        peers: the same methods in another framework, or None.
        beside: a model whose inference is timed too, such as the float model of an 8-bit bundle; or None.
        say: gets one line before each measurement.
    """

    methods: Sequence[str] = (DEFAULT,)
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch: Sequence[int] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    pairs: int = PAIRS
    threads: int = 0
    data: Any = None
    peers: Peers | None = None
    beside: Path | None = None
    say: Callable[[str], object] = lambda line: None

    def run(self, models: Sequence[Path]) -> Benchmark:
        """Measure bundles, and models with every method.

        Raises UsageError for a name that does not exist or too few pairs; the error of a refused compile is part of
        the benchmark's `missing`.
        """
        if self.pairs < FEWEST:
            problem = f"{self.pairs} pairs are too few for a median"
            raise UsageError(problem, where="`--pairs`", hint=f"give {FEWEST} or more")
        figures: list[Figures] = []
        missing: list[tuple[str, str, TtacError]] = []
        with tempfile.TemporaryDirectory(prefix="ttac-bench-") as folder:
            sizes = list(self.batch) or ([] if all(map(is_bundle, models)) else [BATCH])
            specs = [self._learning(spec) for spec in method_specs(self.methods, self.settings)]
            subjects, recipes = subjects_of(models, specs, sizes, self.options, Path(folder))
            seconds = self._compile(subjects, recipes, missing)
            ready = [subject for subject in subjects if subject.bundle in seconds]
            threads = self.threads or os.cpu_count() or 1
            for key in dict.fromkeys((subject.model, subject.batch) for subject in ready):
                same = [subject for subject in ready if (subject.model, subject.batch) == key]
                figures.extend(Group(self, same, recipes, seconds, threads).figures())
        return Benchmark(figures, about(threads), self.peers.name if self.peers else "", missing)

    def _learning(self, spec: MethodSpec) -> MethodSpec:
        """The method without its guard for random numbers, from which a guarded step would not learn."""
        guarded = any(option.name == "guard" for option in find(spec.name).options)
        if self.data is not None or not guarded or "guard" in spec.settings:
            return spec
        return replace(spec, settings={**spec.settings, "guard": "off"})

    def _compile(
        self, subjects: Sequence[Subject], recipes: Mapping[Path, Recipe], missing: list[tuple[str, str, TtacError]]
    ) -> dict[Path, float | None]:
        """Compile the subjects without a bundle; return seconds by bundle, None for a bundle that existed before.

        The errors of refused compiles are added to `missing`.
        """
        seconds: dict[Path, float | None] = {}
        for subject in subjects:
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

    def samples(self, subject: Subject, adapter: Adapter) -> Any:
        """Return the samples of a step: [batch, ...], or arrays by the names of several inputs.

        Raises UsageError when the data do not fit.
        """
        if self.data is None:
            feeds = random_feeds(adapter, subject.batch)
            return feeds if len(feeds) > 1 else next(iter(feeds.values()))
        how = preparation_of(subject.bundle)
        dataset = open_named(self.data, how.inputs) if isinstance(how, NamedInputs) else open_dataset(self.data)
        if dataset.count < subject.batch:
            problem = f"there are {dataset.count} samples, a step takes {subject.batch}"
            raise UsageError(problem, where="`--data`", hint="give more samples, or a smaller `--batch`")
        x = dataset.read(dataset.variants[-1], np.arange(subject.batch), how)
        return x if isinstance(how, NamedInputs) or x.dtype != np.uint8 else how.prepare(x)


class Group:
    """All methods on one model at one batch, timed in turn with the same inference.

    `seconds` are those of the compiles by bundle.
    """

    def __init__(
        self,
        bench: Bench,
        subjects: Sequence[Subject],
        recipes: Mapping[Path, Recipe],
        seconds: Mapping[Path, float | None],
        threads: int,
    ) -> None:
        self.bench, self.subjects, self.recipes, self.seconds = bench, subjects, recipes, seconds
        self.threads = threads
        first = subjects[0]
        self.title = f"{first.model}, batch {first.batch}"
        self.beside: Mapping[str, Any] = {}
        self.beside_name = bench.beside.name if bench.beside else ""
        is_whole = first.bundle in recipes and not bench.options.get("hold")
        self.source = recipes[first.bundle].model if is_whole else first.bundle / "infer.onnx"

    def figures(self) -> list[Figures]:
        """Measure time and memory of every subject."""
        self.bench.say(f"timing {self.title}")
        adapters = {subject.bundle: load(subject.bundle, threads=self.threads) for subject in self.subjects}
        first = self.subjects[0]
        x = self.bench.samples(first, adapters[first.bundle])
        source = partial(inference(self.source, self.threads), x)
        pairs, peer_steps = self.bench.pairs, self._peer_steps()
        times = {bundle: paired(source, partial(each.step, x), pairs) for bundle, each in adapters.items()}
        peer_times = {key: paired(source, partial(step, x), pairs) for key, step in peer_steps.items()}
        if (model := self.bench.beside) is not None:
            beside = paired(source, partial(inference(model, self.threads), x), pairs)
            peer_times |= {(subject.bundle, self.beside_name): beside for subject in self.subjects}
        self._note_held(adapters)
        feeds = x if isinstance(x, dict) else {adapters[first.bundle].inputs[0].name: x}
        adapters.clear()
        self.bench.say(f"measuring the memory of {self.title}")
        with tempfile.TemporaryDirectory(prefix="ttac-bench-") as folder:
            file = Path(folder) / "samples.npz"
            np.savez(file, **feeds)
            base = measure_inference(self.source, file, self.threads)
            if self.bench.beside is not None:
                self.beside = measure_inference(self.bench.beside, file, self.threads) or {}
            memory = {subject.bundle: _memory(subject, self.threads, file) for subject in self.subjects}
        return [
            self._figures(each, times[each.bundle], memory[each.bundle], base, self._peers(each, peer_times))
            for each in self.subjects
        ]

    def _note_held(self, adapters: Mapping[Path, Adapter]) -> None:
        """Say which methods predicted without learning, because their time is not the time of a step that learns."""
        for subject in self.subjects:
            stats = adapters[subject.bundle].stats
            if held := int(stats.get("held", 0)):
                said = f"the guard of `{subject.method}` held {held} of {stats['steps']} steps, which learn nothing"
                self.bench.say(f"note: {said}; give samples with `--data`")

    def _peer_steps(self) -> dict[tuple[Path, str], Step]:
        """Return the steps of the peers by bundle and variant, for the methods that the peers have."""
        if self.bench.peers is None:
            return {}
        return {
            (subject.bundle, variant): step
            for subject in self.subjects
            if subject.bundle in self.recipes
            for variant, step in self.bench.peers.steps(
                self.recipes[subject.bundle].model, Bundle.read(subject.bundle).manifest, self.threads
            ).items()
        }

    def _figures(
        self,
        subject: Subject,
        times: Times,
        memory: Mapping[str, Any] | None,
        base: Mapping[str, Any] | None,
        peers: Mapping[str, Mapping[str, Any]],
    ) -> Figures:
        bundle = Bundle.read(subject.bundle)
        return Figures(
            model=subject.model,
            method=subject.method,
            batch=subject.batch,
            inference_ms=1e3 * float(np.median(times.inference)),
            step_ms=1e3 * float(np.median(times.step)),
            ratio=times.ratio,
            spread=times.spread,
            memory=memory,
            inference=base,
            residuals=bundle.report.get("planned", {}).get("residuals"),
            cache=_published_cache(bundle),
            compile_seconds=self.seconds[subject.bundle],
            peers=peers,
        )

    def _peers(self, subject: Subject, times: Mapping[tuple[Path, str], Times]) -> dict[str, dict[str, Any]]:
        """Return the figures of the peers, and of the model beside them, by variant; their memory is measured here."""
        return {
            variant: self._peer(subject, variant, measured)
            for (bundle, variant), measured in times.items()
            if bundle == subject.bundle
        }

    def _peer(self, subject: Subject, variant: str, times: Times) -> dict[str, Any]:
        memory = self.beside if variant == self.beside_name else self._peer_memory(subject, variant)
        return {
            "milliseconds": 1e3 * float(np.median(times.step)),
            "ratio": times.ratio,
            "spread": list(times.spread),
            "peak": memory.get("peak"),
            "loaded": memory.get("loaded"),
        }

    def _peer_memory(self, subject: Subject, variant: str) -> Mapping[str, Any]:
        assert self.bench.peers is not None
        model, manifest = self.recipes[subject.bundle].model, Bundle.read(subject.bundle).manifest
        return self.bench.peers.memory(model, manifest, self.threads, variant) or {}


def _memory(subject: Subject, threads: int, samples_file: Path) -> dict[str, Any] | None:
    """Return `peak` and `loaded` in bytes at the planned batch; None where the subject has another batch.

    A method that learns from certain samples only may find none among the samples.  The compile measured a step with
    every branch, so the returned peak is at least that of the compile.
    """
    manifest = Bundle.read(subject.bundle).manifest
    if subject.batch != manifest["batch"]["planned"]:
        return None
    memory = measure(subject.bundle, threads=threads, samples=samples_file)
    stated = manifest["memory"].get("measured", {}).get("peak", 0)
    return memory and {**memory, "peak": max(memory["peak"], stated)}


def _published_cache(bundle: Bundle) -> int | None:
    """Return the bytes that papers count as the method's cache.

    These are the inputs of all layers with trained parameters; without trained parameters, the largest input.
    """
    counted = bundle.report.get("published_cache")
    if not counted:
        return None
    sites = {str(site["name"]) for site in bundle.manifest["sites"]}
    trained = [str(t["name"]) for t in bundle.manifest["state"]["tensors"] if t["role"] == "parameter"]
    if not trained:
        return int(counted["largest_input_bytes"])
    norms_only = all(name.rpartition(".")[0] in sites for name in trained)
    return int(counted["norm_inputs_bytes" if norms_only else "all_inputs_bytes"])
