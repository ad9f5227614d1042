"""`ttac.evaluate`: methods on models over streams of shifted samples, cell by cell, each kept when it is done."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttac.errors import TtacError, UsageError
from ttac.evaluation import corruptions as images_of
from ttac.evaluation.arrays import Arrays
from ttac.evaluation.cells import Cell, Job, Subject, run_cell
from ttac.evaluation.evaluation import Evaluation, Missing
from ttac.evaluation.evaluation_options import EvaluationOptions
from ttac.evaluation.protocols import WITH_LABELS, Order, streams
from ttac.evaluation.results import Folder
from ttac.evaluation.samples import Source, open_source
from ttac.evaluation.subjects import Recipe, compile_subject, method_specs, subjects
from ttac.evaluation.sweep import perform
from ttac.runtime.bundle import Bundle, read_manifest
from ttac.suggest import did_you_mean


def quiet(*told: object) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Watch:
    """Who follows an evaluation: `say` gets lines of talk, `expect` the samples to come, `moved` those that went."""

    say: Callable[[str], object] = quiet
    expect: Callable[[str, int], object] = quiet
    moved: Callable[[int], object] = quiet


def evaluate(
    models: str | Path | Iterable[str | Path], data: Any, *, watch: Watch | None = None, **options: Any
) -> Evaluation:
    """Error, calibration, entropy, drift, time and memory of methods on models over streams of shifted samples.

    Args:
        models: `.onnx` files and bundles; files are compiled with every method, bundles are used unchanged.
        data: a path, arrays, or an iterator of batches; see `ttac.evaluation.samples.open_source`.
        watch: receiver of the progress.
        options: `methods`, `batch` and the others of `EvaluationOptions`.

    Raises:
        UsageError: a name that does not exist, or samples that do not fit.
        RuntimeMissingError: a package that an option needs is not installed.
    """
    paths = [Path(models)] if isinstance(models, (str, Path)) else [Path(model) for model in models]
    asked = EvaluationOptions.from_mapping(options)
    specs = method_specs(asked.methods, asked.settings)
    source = open_source(data)
    with _folder(asked.output) as folder:
        found, recipes = subjects(paths, specs, asked.batches, asked.options, folder.bundles)
        cells = cells_of(found, asked, source)
        run = Run(folder=folder, source=source, recipes=recipes, options=asked, watch=watch or Watch())
        return run.all(cells)


def cells_of(found: Sequence[Subject], asked: EvaluationOptions, source: Source) -> list[Cell]:
    """Every cell of the sweep, those of a subject after each other.

    Raises UsageError for arrays that the samples lack, or an order that needs labels.
    """
    names = images_of.chosen(asked.corruptions)
    arrays = _arrays(asked, source, bool(names))
    if not arrays and not names:
        raise UsageError("there is nothing to stream", where="`arrays`", hint="name an array or a corruption")
    for order in asked.orders:
        if order in WITH_LABELS and source.labels is None:
            hint = "use `--order shuffled`, or give labels"
            raise UsageError(f"order `{order}` needs labels, and there are none", where="`--order`", hint=hint)
    data = {"digest": source.digest, "samples": asked.samples}
    if names:
        data |= {"corruptions": images_of.version(), "side": images_of.SIDE}
    return [
        Cell(subject, protocol, shifts, Order(order, asked.concentration, seed), data)
        for subject in found
        for protocol in asked.protocols
        for order in asked.orders
        for seed in asked.seeds
        for shifts in streams(protocol, arrays, names, asked.severities)
    ]


def _arrays(asked: EvaluationOptions, source: Source, corrupts: bool) -> Sequence[str]:
    if asked.arrays is None:
        return () if corrupts else source.variants
    for name in asked.arrays:
        if name not in source.variants:
            hint = did_you_mean(name, source.variants)
            raise UsageError(f"the samples have no array `{name}`", where="`--arrays`", hint=hint)
    return asked.arrays


@dataclass(kw_only=True)
class Run:
    """One evaluation under way."""

    folder: Folder
    source: Source
    recipes: Mapping[Path, Recipe]
    options: EvaluationOptions
    watch: Watch
    missing: dict[Path, TtacError] = field(default_factory=dict)

    def all(self, cells: Sequence[Cell]) -> Evaluation:
        """Run what is not kept yet, and give everything back in the order of `cells`."""
        results = {cell.key: result for cell in cells if (result := self.folder.read(cell.key)) is not None}
        waiting = list({cell.key: cell for cell in cells if cell.key not in results}.values())
        if results:
            self.watch.say(f"{len(results)} of {len(cells)} cells are there already")
        self._compile([cell.subject for cell in waiting])
        ready = [cell for cell in waiting if cell.subject.bundle not in self.missing]
        refused = [cell for cell in waiting if cell.subject.bundle in self.missing]
        failures = {cell.key: self.missing[cell.subject.bundle] for cell in refused}
        for key, outcome in self._run(ready, Arrays(self.folder, self.source, self.options.samples)):
            if isinstance(outcome, TtacError):
                failures[key] = outcome
            else:
                self.folder.keep(outcome)
                results[key] = outcome
        return self._evaluation(cells, results, failures)

    def _compile(self, found: Sequence[Subject]) -> None:
        """Compile the bundles that are not there; those that a method refuses are remembered with the reason."""
        needed = [recipe for path, recipe in self.recipes.items() if path in {subject.bundle for subject in found}]
        needed = [recipe for recipe in needed if not recipe.output.exists()]
        if not needed:
            return
        self.watch.expect("compiling", len(needed))
        for done in perform(compile_subject, needed, jobs=self.options.jobs):
            recipe = needed[done.number]
            if done.failure is not None:
                self.missing[recipe.output] = done.failure
                self.watch.say(f"`{recipe.model.name}` with {recipe.arguments['method']}: {done.failure.what}")
            self.watch.moved(1)

    def _run(self, cells: Sequence[Cell], arrays: Arrays) -> Iterator[tuple[str, dict[str, Any] | TtacError]]:
        if not cells:
            return
        for bundle in dict.fromkeys(cell.subject.bundle for cell in cells):
            self._check_labels(bundle)
        made = arrays.prepare(cells, self.options.jobs, self.watch)
        jobs = [Job(cell, made.of(cell), made.labels, self.options.engine_threads) for cell in cells]
        here = self.options.jobs == 1 and self.options.cluster is None
        sizes = [len(cell.shifts) * made.count for cell in cells]
        self.watch.expect("evaluating", sum(sizes))
        function = _Counted(self.watch.moved) if here else run_cell
        for done in perform(function, jobs, jobs=self.options.jobs, cluster=self.options.cluster):
            if not here:
                self.watch.moved(sizes[done.number])
            outcome = done.made if done.failure is None else done.failure
            assert outcome is not None
            yield cells[done.number].key, outcome

    def _check_labels(self, bundle: Path) -> None:
        """Raise UsageError when a label is beyond the classes of the model."""
        classes = read_manifest(bundle)["outputs"][0]["shape"][-1]
        highest = -1 if self.source.labels is None else int(self.source.labels.max())
        if isinstance(classes, int) and highest >= classes:
            what = f"there is a label {highest}, the model has {classes} classes"
            hint = "number the classes from 0 in the order of the model's outputs"
            raise UsageError(what, where=f"`{self.source.name}`", hint=hint)

    def _evaluation(
        self, cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]], failures: Mapping[str, TtacError]
    ) -> Evaluation:
        reports = {}
        for subject in {cell.subject.bundle: cell.subject for cell in cells}.values():
            if (subject.bundle / "report.json").is_file():
                reports[subject.model, subject.method, subject.batch] = dict(Bundle.read(subject.bundle).report)
        return Evaluation(
            [labelled(results[cell.key], cell.subject) for cell in cells if cell.key in results],
            missing=[Missing(cell, failures[cell.key]) for cell in cells if cell.key in failures],
            reports=reports,
            data=self.source.name,
        )


def labelled(result: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """The result under the names that its subject was asked for by: equal bundles share a kept result."""
    return {**result, "model": subject.model, "method": subject.method}


class _Counted:
    """`run_cell` that tells after each batch how many samples went."""

    def __init__(self, moved: Callable[[int], object]) -> None:
        self.moved = moved

    def __call__(self, job: Job) -> dict[str, Any]:
        return run_cell(job, self.moved)


class _folder:
    """The folder of the evaluation: the one asked for, or one that goes when the evaluation is done."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = path
        self.temporary: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Folder:
        if self.path is not None:
            return Folder(Path(self.path).absolute())
        self.temporary = tempfile.TemporaryDirectory(prefix="ttac-eval-")
        return Folder(Path(self.temporary.name))

    def __exit__(self, *error: object) -> None:
        if self.temporary is not None:
            self.temporary.cleanup()
