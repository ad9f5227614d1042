"""`ttac.evaluate` on a hand-made bundle whose steps are written down in numpy."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from tests.support.tiny_bundles import PLANNED, ema, ema_expected, read, reseal
from ttac.errors import TtacError, UsageError
from ttac.evaluation import cells
from ttac.evaluation.answers import reading_of
from ttac.evaluation.evaluation_result import Evaluation
from ttac.evaluation.metrics import unpacked
from ttac.evaluation.protocols import Order, Shift, schedule
from ttac.evaluation.study import Watch
from ttac.evaluation.tables import COLUMNS

COUNT = 22
GENERATOR = np.random.default_rng(0)
ARRAYS = {name: GENERATOR.normal(shift, 1, (COUNT, 3)).astype(np.float32) for name, shift in (("a", 0), ("b", 2))}
LABELS = GENERATOR.integers(0, 2, COUNT)
START = np.array([0.5, 0, -0.5], np.float32)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    cells._adapter.cache_clear()
    return ema(tmp_path / "tiny.ttac")


def evaluated(bundle: Path, labels: bool = True, **options: Any) -> Evaluation:
    data = {**ARRAYS, "labels": LABELS} if labels else ARRAYS
    return ttac.evaluate(bundle, data, **options)


def stepped(protocol: str, shifts: tuple[str, ...], order: Order) -> dict[str, np.ndarray]:
    """Predicted classes of each shift, in the order of the samples, by numpy."""
    mean, found = START, {name: np.zeros(COUNT, int) for name in shifts}
    stream = [Shift(name) for name in shifts]
    for batch in schedule(protocol, stream, COUNT, LABELS, order, batch=PLANNED):
        x = np.stack([ARRAYS[shifts[s]][r] for s, r in zip(batch.shifts, batch.rows, strict=True)])
        logits, mean = ema_expected(x, START if batch.reset else mean)
        for s, row, logit in zip(batch.shifts, batch.rows, logits, strict=True):
            found[shifts[s]][row] = logit.argmax()
    return found


@pytest.mark.parametrize("order", ["shuffled", "file", "by-label", "dirichlet"])
@pytest.mark.parametrize("protocol", ["continual", "reset-each-shift", "episodic", "mixed"])
def test_the_errors_are_those_of_the_steps_in_numpy(protocol: str, order: str, bundle: Path) -> None:
    found = evaluated(bundle, protocols=[protocol], orders=[order], seeds=[3])
    streams = [("a", "b")] if protocol in ("continual", "mixed") else [("a",), ("b",)]
    expected: dict[str, np.ndarray] = {}
    for shifts in streams:
        expected |= stepped(protocol, shifts, Order(order, seed=3))
    parts = {part["shift"]: part for result in found.results for part in result["parts"]}
    for name, classes in expected.items():
        np.testing.assert_array_equal(unpacked(parts[name]["predictions"]), classes)
        assert parts[name]["wrong"] == int((classes != LABELS).sum())
    rows = {row["shift"]: row for row in found.rows()}
    assert (
        rows["b"]["error"] == pytest.approx(float((expected["b"] != LABELS).mean())) and rows["b"]["batch"] == PLANNED
    )


def test_the_trace_holds_every_sample_once(bundle: Path) -> None:
    (result,) = evaluated(bundle).results
    assert [sum(w["samples"] for w in result["trace"] if w["shift"] == shift) for shift in (0, 1)] == [COUNT, COUNT]
    assert sum(window["wrong"] for window in result["trace"]) == sum(part["wrong"] for part in result["parts"])
    assert all(window["stats"]["spread"] > 0 for window in result["trace"])


def test_without_labels_there_is_no_error(bundle: Path) -> None:
    found = evaluated(bundle, labels=False)
    row = found.rows()[0]
    assert not found.labelled and row["error"] is row["ece"] is None and 0 <= row["entropy"] <= np.log(2)
    (table,) = found.tables()
    assert table.errors["a"]["tiny"] == row["entropy"]


def test_drift_is_the_share_of_predictions_that_are_not_source_s(bundle: Path, tmp_path: Path) -> None:
    source = ema(tmp_path / "source.ttac")
    manifest = read(source)
    manifest["method"]["name"] = "source"
    manifest["graphs"]["forward"]["state"] = {}
    reseal(source, manifest)
    found = ttac.evaluate([source, bundle], {**ARRAYS, "labels": LABELS})
    fixed = {name: ema_expected(x, START)[0].argmax(1) for name, x in ARRAYS.items()}
    moved = stepped("continual", ("a", "b"), Order())
    drifts = {(row["method"], row["shift"]): row["drift"] for row in found.rows()}
    assert drifts["source", "a"] == 0
    for name in ARRAYS:
        assert drifts["tiny", name] == pytest.approx(float((fixed[name] != moved[name]).mean()))
    assert drifts["tiny", "b"] > 0


# --- kept results ---------------------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch, fail_after: int | None = None) -> list[str]:
    """The keys of the cells that run from now on; the one after `fail_after` is interrupted."""
    from ttac.evaluation import study

    ran: list[str] = []

    def run(job: Any, moved: Any = None) -> dict[str, Any]:
        if fail_after is not None and len(ran) == fail_after:
            raise KeyboardInterrupt
        ran.append(job.cell.key)
        return cells.run_cell(job)

    monkeypatch.setattr(study, "run_cell", run)
    return ran


def timeless(found: Evaluation) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "ms_per_sample"} for row in found.rows()]


def test_an_interrupted_run_goes_on_where_it_stopped(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"protocols": ["episodic"], "seeds": [0, 1], "output": tmp_path / "kept"}
    whole = evaluated(bundle, **{**asked, "output": None})
    first = counted(monkeypatch, fail_after=2)
    with pytest.raises(KeyboardInterrupt):
        evaluated(bundle, **asked)
    monkeypatch.undo()
    second, said = counted(monkeypatch), list[str]()
    found = evaluated(bundle, **asked, watch=Watch(say=said.append))
    assert len(first) == len(second) == 2 and not set(first) & set(second)
    assert said == ["2 of 4 cells are there already"]
    assert timeless(found) == timeless(whole)


def test_a_cell_with_a_damaged_result_runs_again(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    evaluated(bundle, output=kept)
    (file,) = (kept / "cells").iterdir()
    ran = counted(monkeypatch)
    for damaged in (file.read_text()[:-9], "[]", json.dumps({"key": file.stem}), ""):
        file.write_text(damaged)
        evaluated(bundle, output=kept)
        assert ran == [file.stem] and json.loads(file.read_text())["key"] == ran.pop()


@pytest.mark.parametrize(
    "change", [{"seeds": [1]}, {"batch": 2}, {"orders": ["file"]}, {"samples": 9}, {"protocols": ["mixed"]}]
)
def test_other_choices_are_other_cells(
    change: dict[str, Any], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    evaluated(bundle, output=kept)
    ran = counted(monkeypatch)
    evaluated(bundle, output=kept, **change)
    assert len(ran) == 1


def test_another_bundle_dataset_or_version_is_another_cell(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    evaluated(bundle, output=kept)
    ran = counted(monkeypatch)
    evaluated(bundle, labels=False, output=kept)
    manifest = read(bundle)
    manifest["method"]["settings"]["lr"] = 0.25
    reseal(bundle, manifest)
    evaluated(bundle, output=kept)
    monkeypatch.setattr("ttac.evaluation.subjects.metadata.version", lambda package: "9")
    evaluated(bundle, output=kept)
    assert len(set(ran)) == len(ran) == 3


def test_a_folder_that_is_something_else_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    with pytest.raises(UsageError, match="no evaluation's"):
        evaluated(bundle, output=tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["file"]


@pytest.mark.slow
@pytest.mark.parametrize("place", [{"jobs": 2}, {"jobs": 2, "cluster": "ray"}], ids=["processes", "ray"])
@pytest.mark.filterwarnings("ignore")
def test_the_same_numbers_in_other_processes(place: dict[str, Any], bundle: Path, tmp_path: Path) -> None:
    for needed in ("joblib", "ray")[: len(place)]:
        pytest.importorskip(needed)
    asked: dict[str, Any] = {"protocols": ["reset-each-shift", "mixed"], "seeds": [0, 1], "threads": 1}
    assert timeless(evaluated(bundle, **asked, **place, output=tmp_path / "kept")) == timeless(
        evaluated(bundle, **asked)
    )


# --- refused usage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason", "hint"),
    [
        ({"methods": ["tnet"]}, "no method `tnet`", "did you mean `tent`?"),
        ({"methods": ["tent:lrr=1"]}, "no option `lrr`", "did you mean `lr`?"),
        ({"settings": {"nothing": "1"}}, "none of the methods has an option `nothing`", "ttac methods"),
        ({"corruptions": ["foog"]}, "no corruption `foog`", "did you mean `fog`?"),
        ({"protocols": ["continuous"]}, "`continuous` is no choice", "did you mean `continual`?"),
        ({"orders": ["random"]}, "`random` is no choice", "choose from"),
        ({"severities": [6]}, "no severity 6", "1 to 5"),
        ({"arrays": ["c"]}, "no array `c`", "choose from `a`, `b`"),
        ({"arrays": []}, "nothing to stream", "name an array"),
        ({"batch": 0}, "`0` does not fit", "at least 1"),
        ({"batch": 9}, "planned for 4 samples", "--batch 9"),
        ({"samples": 0}, "`0` does not fit", "at least 1"),
        ({"options": {"trian": "all"}}, "a compile has no option `trian`", "did you mean `train`?"),
        ({"order": ["file"]}, "an evaluation has no option `order`", "did you mean `orders`?"),
        ({"cluster": "slurm"}, "no cluster `slurm`", "--cluster ray"),
    ],
)
def test_a_wrong_choice(options: dict[str, Any], reason: str, hint: str, bundle: Path) -> None:
    with pytest.raises(TtacError, match=reason) as caught:
        evaluated(bundle, **options)
    assert hint in caught.value.hint and caught.value.exit_code == 2


def test_an_order_by_class_without_labels(bundle: Path) -> None:
    with pytest.raises(UsageError, match="needs labels"):
        evaluated(bundle, labels=False, orders=["by-label"])


def test_a_label_beyond_the_classes(bundle: Path) -> None:
    with pytest.raises(UsageError, match="label 5, the model has 2 classes"):
        ttac.evaluate(bundle, (ARRAYS["a"], np.full(COUNT, 5)))


def test_samples_of_another_shape(bundle: Path) -> None:
    with pytest.raises(UsageError, match="the model takes"):
        ttac.evaluate(bundle, np.zeros((8, 4), np.float32))


def test_prepared_samples_cannot_be_corrupted(bundle: Path) -> None:
    pytest.importorskip("imagecorruptions")
    with pytest.raises(UsageError, match="cannot be corrupted"):
        evaluated(bundle, corruptions=["fog"])


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model or bundle"):
        ttac.evaluate(tmp_path / "none.onnx", ARRAYS)


def test_probabilities_are_read_as_logits(bundle: Path) -> None:
    manifest = read(bundle)
    manifest["head"]["values"] = "probabilities"
    predicted = reading_of(manifest).read(np.array([[0.25, 0.75]]))
    assert predicted.confidence[0] == pytest.approx(0.75) and predicted.answers[0] == 1


# --- results --------------------------------------------------------------------------------------------------------


def test_the_spread_over_seeds_is_that_of_their_means(bundle: Path) -> None:
    found = evaluated(bundle, seeds=[0, 1, 2])
    rows = found.rows()
    means = [np.mean([row["error"] for row in rows if row["seed"] == seed]) for seed in (0, 1, 2)]
    (table,) = found.tables()
    assert table.spread == {"tiny": pytest.approx(np.std(means, ddof=1))} and table.spread["tiny"] > 0
    assert evaluated(bundle).tables()[0].spread == {}


def test_bytes_without_a_preparation_get_a_note(tmp_path: Path) -> None:
    cells._adapter.cache_clear()
    said = list[str]()
    folder = ema(tmp_path / "image.ttac")
    manifest = read(folder)
    manifest["inputs"][0]["shape"] = ["N", 1, 1, 3]
    reseal(folder, manifest)
    from ttac.evaluation.cells import Cell, Subject
    from ttac.evaluation.dataset import open_dataset
    from ttac.evaluation.result_folder import ResultFolder
    from ttac.evaluation.shift_files import ShiftFileMaker

    dataset = open_dataset(np.zeros((2, 1, 1, 3), np.uint8))
    subject = Subject(model="m", method="tiny", batch=2, identity={}, bundle=folder)
    cell = Cell(subject=subject, protocol="continual", shifts=(Shift("clean"),), order=Order(), data={})
    maker = ShiftFileMaker(ResultFolder(tmp_path / "kept"), dataset, None)
    files = maker.prepare([cell], 1, Watch(say=said.append))
    assert len(said) == 1 and "scaled to [0, 1]" in said[0]
    assert np.load(files.of(cell)[0]).dtype == np.uint8 and files.count == 2


def test_rows_as_csv_and_json(bundle: Path) -> None:
    found = evaluated(bundle)
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    assert tuple(rows[0]) == COLUMNS and [row["shift"] for row in rows] == ["a", "b"]
    assert float(rows[0]["error"]) == found.rows()[0]["error"]
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["labelled"] is True


def test_bundles_of_one_method_go_by_their_folders(bundle: Path, tmp_path: Path) -> None:
    found = ttac.evaluate([bundle, ema(tmp_path / "other.ttac")], ARRAYS)
    assert [result["method"] for result in found.results] == ["tiny", "other"]
    assert found.results[0]["model"] == "tiny"
