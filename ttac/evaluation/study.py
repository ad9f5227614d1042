"""`ttac.evaluate`: methods on models over streams of shifted samples, cell by cell; each result is kept at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ttac.errors import TtacError, UnsupportedError, UsageError
from ttac.evaluation import corruptions as images_of
from ttac.evaluation.answers import reading_of
from ttac.evaluation.cells import Cell, Job, Subject, run_cell
from ttac.evaluation.dataset import Dataset, open_dataset
from ttac.evaluation.evaluation_options import EvaluationOptions
from ttac.evaluation.evaluation_result import Evaluation, MissingCell
from ttac.evaluation.machine import about
from ttac.evaluation.named_data import named_inputs, open_named
from ttac.evaluation.protocols import WITH_LABELS, Order, streams
from ttac.evaluation.result_folder import ResultFolder, kept_or_temporary
from ttac.evaluation.shift_files import ShiftFileMaker
from ttac.evaluation.subjects import Recipe, compile_subject, method_specs, subjects_of
from ttac.evaluation.sweep import perform
from ttac.evaluation.watch import Watch
from ttac.runtime.bundle import Bundle, is_bundle, read_manifest
from ttac.suggest import did_you_mean


def evaluate(
    models: str | Path | Iterable[str | Path], data: Any, *, watch: Watch | None = None, **options: Any
) -> Evaluation:
    """Return error, calibration, entropy, drift, time and memory of methods on models over streams of shifted samples.

    Args:
        models: `.onnx` files and bundles; files are compiled with every method, bundles are used unchanged.
        data: a path, arrays, or an iterator of batches; see `ttac.evaluation.dataset.open_dataset`.
        watch: receiver of the progress.
        options: `methods`, `batch` and the others of `EvaluationOptions`.

    Raises:
        UsageError: a name that does not exist, or samples that do not fit.
        RuntimeMissingError: a package that an option needs is not installed.
    """
    paths = [Path(models)] if isinstance(models, (str, Path)) else [Path(model) for model in models]
    choices = EvaluationOptions.from_mapping(options)
    specs = method_specs(choices.methods, choices.settings)
    inputs = named_inputs(paths, choices.options)
    dataset = open_named(data, inputs) if inputs else open_dataset(data)
    with kept_or_temporary(choices.output) as folder:
        subjects, recipes = subjects_of(paths, specs, choices.batches, choices.options, folder.bundles)
        cells = cells_of(subjects, choices, dataset)
        run = EvaluationRun(folder=folder, dataset=dataset, recipes=recipes, options=choices, watch=watch or Watch())
        return run.all(cells)


def cells_of(subjects: Sequence[Subject], options: EvaluationOptions, dataset: Dataset) -> list[Cell]:
    """Return every cell of the evaluation, subject by subject.

    Raises UsageError for arrays that the samples lack, or an order that needs labels.
    """
    names = images_of.chosen(options.corruptions)
    arrays = _arrays(options, dataset, bool(names))
    if not arrays and not names:
        raise UsageError("there is nothing to stream", where="`arrays`", hint="name an array or a corruption")
    for order in options.orders:
        if order in WITH_LABELS and (dataset.labels is None or dataset.labels.ndim != 1):
            found = "there are none" if dataset.labels is None else f"they have shape {list(dataset.labels.shape)}"
            hint = "use `--order shuffled`, or give one class for each sample"
            raise UsageError(f"order `{order}` needs labels, and {found}", where="`--order`", hint=hint)
    data = {"digest": dataset.digest, "samples": options.samples}
    if names:
        data |= {"corruptions": images_of.version(), "side": images_of.SIDE}
    return [
        Cell(subject=subject, protocol=protocol, shifts=shifts, order=order, data=data)
        for subject in subjects
        for protocol in options.protocols
        for order in [Order(kind, options.concentration, seed) for kind in options.orders for seed in options.seeds]
        for shifts in streams(protocol, arrays, names, options.severities)
    ]


def _arrays(options: EvaluationOptions, dataset: Dataset, corrupts: bool) -> Sequence[str]:
    """Return the names of the arrays to stream; raises UsageError for a name that the samples lack."""
    if options.arrays is None:
        return () if corrupts else dataset.variants
    for name in options.arrays:
        if name not in dataset.variants:
            hint = did_you_mean(name, dataset.variants)
            raise UsageError(f"the samples have no array `{name}`", where="`--arrays`", hint=hint)
    return options.arrays


@dataclass(kw_only=True)
class EvaluationRun:
    """One evaluation under way."""

    folder: ResultFolder
    dataset: Dataset
    recipes: Mapping[Path, Recipe]
    options: EvaluationOptions
    watch: Watch
    refusals: dict[Path, TtacError] = field(default_factory=dict)

    def all(self, cells: Sequence[Cell]) -> Evaluation:
        """Run the cells without a kept result, and return all results in the order of `cells`."""
        results = {cell.key: result for cell in cells if (result := self.folder.read(cell.key)) is not None}
        pending = list({cell.key: cell for cell in cells if cell.key not in results}.values())
        if results:
            self.watch.say(f"{len(results)} of {len(cells)} cells are there already")
        self._compile([cell.subject for cell in pending])
        ready = [cell for cell in pending if cell.subject.bundle not in self.refusals]
        refused = [cell for cell in pending if cell.subject.bundle in self.refusals]
        failures = {cell.key: self.refusals[cell.subject.bundle] for cell in refused}
        for key, outcome in self._run(ready, ShiftFileMaker(self.folder, self.dataset, self.options.samples)):
            if isinstance(outcome, TtacError):
                failures[key] = outcome
            else:
                self.folder.keep(outcome)
                results[key] = outcome
        return self._evaluation(cells, results, failures)

    def _compile(self, subjects: Sequence[Subject]) -> None:
        """Compile the missing bundles, and remember the error of each refused compile."""
        bundles = {subject.bundle for subject in subjects}
        recipes = [recipe for path, recipe in self.recipes.items() if path in bundles and not recipe.output.exists()]
        if not recipes:
            return
        self.watch.expect("compiling", len(recipes))
        for done in perform(compile_subject, recipes, jobs=self.options.jobs):
            recipe = recipes[done.number]
            if done.failure is not None:
                self.refusals[recipe.output] = done.failure
                self.watch.say(f"`{recipe.model.name}` with {recipe.arguments['method']}: {done.failure.problem}")
            self.watch.moved(1)

    def _run(self, cells: Sequence[Cell], maker: ShiftFileMaker) -> Iterator[tuple[str, dict[str, Any] | TtacError]]:
        """Yield the key of each cell with its result or its error, in the order in which they finish."""
        if not cells:
            return
        for bundle in dict.fromkeys(cell.subject.bundle for cell in cells):
            self._check_labels(bundle)
        files = maker.prepare(cells, self.options.jobs, self.watch)
        threads = self.options.engine_threads
        facts: dict[str, Any] = {"count": files.count, "labels": files.labels, "threads": threads}
        jobs = [Job(cell=cell, arrays=files.of(cell), **facts) for cell in cells]
        here = self.options.jobs == 1 and self.options.cluster is None
        sizes = [len(cell.shifts) * files.count for cell in cells]
        self.watch.expect("evaluating", sum(sizes))
        function = partial(run_cell, moved=self.watch.moved) if here else run_cell
        for done in perform(function, jobs, jobs=self.options.jobs, cluster=self.options.cluster):
            if not here:
                self.watch.moved(sizes[done.number])
            outcome = done.result if done.failure is None else done.failure
            assert outcome is not None
            yield cells[done.number].key, outcome

    def _check_labels(self, bundle: Path) -> None:
        """Raise UsageError for labels that do not fit the answers of the model."""
        if self.dataset.labels is None:
            return
        with suppress(UnsupportedError):
            reading_of(read_manifest(bundle)).check_labels(self.dataset.labels, f"`{self.dataset.name}`")

    def _evaluation(
        self, cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]], failures: Mapping[str, TtacError]
    ) -> Evaluation:
        reports = {}
        for subject in {cell.subject.bundle: cell.subject for cell in cells}.values():
            if is_bundle(subject.bundle) and (report := Bundle.read(subject.bundle).report):
                reports[subject.model, subject.method, subject.batch] = dict(report)
        return Evaluation(
            results=[named(results[cell.key], cell.subject) for cell in cells if cell.key in results],
            missing=[MissingCell(cell, failures[cell.key]) for cell in cells if cell.key in failures],
            reports=reports,
            data=self.dataset.name,
            about=about(self.options.engine_threads),
        )


def named(result: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """Return the result with the names of this subject: equal bundles share one kept result."""
    return {**result, "model": subject.model, "method": subject.method}
