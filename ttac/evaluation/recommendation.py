"""`ttac.recommend`: tries the methods on synthetic shifts of calibration samples, and chooses one.

Half of the samples calibrates the bundles, the other half is streamed: clean, then under each shift.  Without labels,
the predictions of the source model on the clean samples serve as labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ttac import methods
from ttac.errors import UnsupportedError, UsageError
from ttac.evaluation import corruptions as images_of
from ttac.evaluation.dataset import CLEAN, Dataset, open_dataset, subset
from ttac.evaluation.evaluation_result import Evaluation
from ttac.evaluation.result_folder import kept_or_temporary
from ttac.evaluation.sensor_shifts import SHIFTS, shifted
from ttac.evaluation.study import evaluate
from ttac.evaluation.subjects import SOURCE, compile_subject, method_specs, subjects_of
from ttac.evaluation.watch import Watch
from ttac.options import CompileOptions, parsed, whole_number
from ttac.runtime import load
from ttac.runtime.bundle import read_manifest
from ttac.runtime.records import BATCH_AXIS
from ttac.samples.images import Preparation, preparation
from ttac.source_model import load_source
from ttac.source_samples import bound_sizes, sizes_of
from ttac.suggest import did_you_mean

IMAGE_SHIFTS = ("gaussian_noise", "motion_blur", "fog", "contrast", "pixelate")
"""Default corruptions of images, each of another kind: noise, blur, weather, light and digital."""

TIE = 0.005
"""Difference of mean errors that counts as none: the cheaper method wins."""
FEWEST = 32
"""Least number of samples: half of them are streamed."""


@dataclass(frozen=True, kw_only=True)
class RecommendOptions:
    """The options of one recommendation.

    Attributes:
        methods: names to try, or `name:option=value`; all methods by default.
        batch: samples of one step; the target's number by default.
        shifts: names of corruptions of images, or of `ttac.evaluation.sensor_shifts` for other samples.
        severity: of the shifts, 1 to 5.
        order: of the samples in a shift, as in `ttac.evaluate`.
        samples: number of calibration samples to use, the same at every call.
        slowest: longest step, in times of the step of `source`; None for no limit.
        options: further arguments of `ttac.compile`: `target`, `memory_budget`, `pixels` and so on.
        output: folder that keeps finished results; None keeps nothing.
        jobs: number of parallel processes.
    """

    methods: Sequence[str] = ()
    batch: int | None = None
    shifts: Sequence[str] = ()
    severity: int = 5
    order: str = "shuffled"
    samples: int = 512
    slowest: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    output: Path | None = None
    jobs: int = 1

    @classmethod
    def from_mapping(cls, choices: Mapping[str, Any]) -> RecommendOptions:
        """Return the options of `choices`; None leaves an option out.  Raises UsageError for a wrong choice."""
        stated = {name: value for name, value in choices.items() if value is not None}
        known = [entry.name for entry in fields(cls)]
        for name in stated:
            if name not in known:
                raise UsageError(f"a recommendation has no option `{name}`", hint=did_you_mean(name, known))
        options = cls(**stated)
        whole_number(FEWEST)(options.samples, "`--samples`")
        if options.severity not in images_of.SEVERITIES:
            hint = "give a number of 1 to 5"
            raise UsageError(f"there is no severity {options.severity}", where="`--severity`", hint=hint)
        return options


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One method's figures.

    Attributes:
        error: mean over the shifts, in 0..1; with labels, the clean samples count as one more shift.
        clean: error on the clean samples; worst: the largest error of a shift.
        cost: time of a step, in times of the step of `source`.
        peak_bytes: measured working memory of a step.
        slow: whether the step exceeds the limit `slowest`.
    """

    method: str
    error: float
    clean: float
    worst: float
    cost: float
    peak_bytes: int | None
    slow: bool = False


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The chosen method, the reason, and the figures of all methods.

    Attributes:
        method: label of the chosen method; `source` where no method is better than the source model.
        because: the reason in one sentence.
        candidates: methods that ran, best first.
        refused: method -> reason why the method does not fit the model, the samples or the memory.
        labelled: whether the samples have labels; otherwise errors count differences from the source model's
            predictions of the clean samples.
        evaluation: all results.
    """

    method: str
    because: str
    candidates: Sequence[Candidate]
    refused: Mapping[str, str]
    labelled: bool
    evaluation: Evaluation

    def as_json(self) -> dict[str, Any]:
        """Return the recommendation for a program, with the error of every shift."""
        return {
            "method": self.method,
            "because": self.because,
            "labelled": self.labelled,
            "candidates": [asdict(each) for each in self.candidates],
            "refused": dict(self.refused),
            "rows": self.evaluation.rows(),
        }


def recommend(model: str | Path, data: Any, *, watch: Watch | None = None, **choices: Any) -> Recommendation:
    """Return the method to take for `model`, found by trying the methods on shifts of calibration samples.

    Args:
        model: an `.onnx` file.
        data: calibration samples, a few hundred or more: everything that `ttac.evaluate` reads.
        watch: receiver of the progress.
        choices: `methods`, `batch` and the others of `RecommendOptions`.

    Raises:
        UsageError: a wrong option, or samples that do not fit the model.
        UnsupportedError: the model is no classifier, or cannot be compiled.
        RuntimeMissingError: the package of the corruptions of images is not installed.
    """
    options, watch = RecommendOptions.from_mapping(choices), watch or Watch()
    dataset = open_dataset(data)
    batch = CompileOptions.from_mapping(model, {**options.options, "batch": options.batch, "dry_run": True}).batch
    with kept_or_temporary(options.output) as folder:
        known, stream = _divided(dataset, Path(model), replace(options, batch=batch), folder.bundles)
        shifts = _with_shifts(stream, options)
        watch.say(f"{len(known)} samples calibrate, {len(stream[CLEAN])} are streamed under {len(shifts)} shifts")
        evaluation = evaluate(
            model,
            stream,
            methods=[SOURCE, *(name for name in options.methods or methods.names() if name != SOURCE)],
            corruptions=shifts if stream[CLEAN].dtype == np.uint8 else (),
            arrays=[name for name in stream if name != "labels"],
            severities=[options.severity],
            orders=[options.order],
            batch=batch,
            options={**options.options, "calibration": known},
            output=folder.path,
            jobs=options.jobs,
            watch=watch,
        )
    return recommendation_of(evaluation, options.slowest, labelled=dataset.labels is not None)


def recommendation_of(evaluation: Evaluation, slowest: float | None, labelled: bool) -> Recommendation:
    """Return the recommendation for an evaluation of one model that includes `source`.

    The lowest mean error wins.  Among methods within `TIE` of the lowest, the cheapest wins.
    """
    refused = {each.cell.subject.method: each.reason.problem for each in evaluation.missing}
    if SOURCE in refused:
        raise next(each.reason for each in evaluation.missing if each.cell.subject.method == SOURCE)
    (table,) = evaluation.tables()
    times = table.totals["ms_per_sample"]
    found = []
    for method in table.methods:
        errors = {shift: row[method] for shift, row in table.errors.items()}
        cost = float(times[method] or 0) / float(times[SOURCE] or 1)
        peak = table.totals["peak_bytes"][method]
        found.append(
            Candidate(
                method=method,
                # Without labels, the clean error of `source` is 0 by definition: it says nothing about the others.
                error=float(np.mean([error for shift, error in errors.items() if labelled or shift != CLEAN])),
                clean=errors[CLEAN],
                worst=max(errors.values()),
                cost=cost,
                peak_bytes=None if peak is None else int(peak),
                slow=slowest is not None and cost > slowest,
            )
        )
    best, because = chosen(found)
    ranked = sorted(found, key=lambda each: (each.slow, each.method != best, each.error))
    facts: dict[str, Any] = {"method": best, "because": because, "candidates": ranked, "refused": refused}
    return Recommendation(labelled=labelled, evaluation=evaluation, **facts)


def chosen(candidates: Sequence[Candidate]) -> tuple[str, str]:
    """Return the label of the best candidate, and the reason in one sentence."""
    source = next(each for each in candidates if each.method == SOURCE)
    fitting = [each for each in candidates if not each.slow or each is source]
    lowest = min(each.error for each in fitting)
    if source.error <= lowest + TIE:
        return SOURCE, f"no method is more than {100 * TIE:.1f} points better than the model unchanged"
    tied = [each for each in fitting if each.error <= lowest + TIE]
    best = min(tied, key=lambda each: each.cost)
    because = f"mean error {100 * best.error:.1f} %, {100 * source.error:.1f} % without adaptation"
    if len(tied) > 1:
        others = ", ".join(f"`{each.method}`" for each in tied if each is not best)
        because += f"; within {100 * TIE:.1f} points of {others}, and cheaper"
    return best.method, because


def _divided(
    dataset: Dataset, model: Path, options: RecommendOptions, bundles: Path
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the calibration half and the streamed half, with labels; without labels, the source model's predictions.

    The bundle of the source model lies in the folder `bundles`, where the evaluation finds it.

    Raises UsageError for too few samples, UnsupportedError for a model that is no classifier.
    """
    if dataset.count < FEWEST:
        hint = "give a few hundred samples"
        raise UsageError(
            f"there are {dataset.count} samples, {FEWEST} are needed", where=f"`{dataset.name}`", hint=hint
        )
    rows = np.random.default_rng(0).permutation(subset(dataset.count, options.samples))
    known, streamed = (np.sort(part) for part in np.array_split(rows, 2))
    assert options.batch is not None
    how = _preparation(model, options.options)
    calibration = _prepared(dataset.read(dataset.variants[0], known, how), how)
    arguments = {**options.options, "calibration": calibration}
    (subject,), recipes = subjects_of([model], method_specs([SOURCE], {}), [options.batch], arguments, bundles)
    compile_subject(recipes[subject.bundle])
    _refuse_other_heads(subject.bundle, model)
    clean = dataset.read(dataset.variants[0], streamed, how)
    labels = dataset.labels
    labels = _predicted(subject.bundle, _prepared(clean, how)) if labels is None else labels[streamed]
    return calibration, {CLEAN: clean, "labels": labels}


def _preparation(model: Path, options: Mapping[str, Any]) -> Preparation:
    """Return the rule by which bytes become the input of the model; raises UnsupportedError for several inputs."""
    chosen = parsed(options)
    entry, *others = sizes_of(load_source(model, chosen), chosen.get("shape") or chosen.get("max_shape"))
    if others or entry.axis != 0:
        hint = "`ttac eval` takes arrays by the names of the inputs"
        raise UnsupportedError("`recommend` shifts the samples of one input", where=f"`{model}`", hint=hint)
    return preparation([BATCH_AXIS, *bound_sizes((), entry.sizes[1:])], chosen.get("pixels"), entry.dtype)


def _prepared(samples: np.ndarray, how: Preparation) -> np.ndarray:
    """Return the samples as the model's input takes them: bytes become numbers, other samples stay unchanged."""
    return how.prepare(samples) if samples.dtype == np.uint8 else samples


def _refuse_other_heads(bundle: Path, model: Path) -> None:
    """Raise UnsupportedError for a model that does not give each sample one of several classes."""
    output = read_manifest(bundle)["outputs"][0]
    if len(output["shape"]) == 2 and output["shape"][1] != 1:
        return
    problem = f"output `{output['name']}` {output['shape']} holds no classes of a sample"
    hint = "`recommend` compares classifiers; `ttac eval` and `ttac bench` take other models"
    raise UnsupportedError(problem, where=f"`{model}`", hint=hint)


def _predicted(bundle: Path, samples: np.ndarray) -> np.ndarray:
    """Return the classes that the unchanged model predicts, [n]."""
    size = int(read_manifest(bundle)["batch"]["planned"])
    adapter = load(bundle)
    batches = [samples[i : i + size] for i in range(0, len(samples), size)]
    return np.concatenate([np.asarray(adapter.predict(x)).argmax(axis=1) for x in batches])


def _with_shifts(stream: dict[str, np.ndarray], options: RecommendOptions) -> Sequence[str]:
    """Return the names of the shifts; add the arrays of the shifts to the stream, unless they are images."""
    clean = stream[CLEAN]
    if clean.dtype == np.uint8:
        return images_of.chosen(options.shifts or IMAGE_SHIFTS)
    names = options.shifts or tuple(SHIFTS)
    for name in names:
        if name not in SHIFTS:
            hint = did_you_mean(name, SHIFTS)
            raise UsageError(f"samples that are no bytes have no shift `{name}`", where="`--shifts`", hint=hint)
        stream[name] = shifted(clean, name, options.severity)
    return names
