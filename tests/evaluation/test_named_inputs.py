"""`ttac eval` and `ttac bench` on models with several inputs: arrays by their names, and shifts of single inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from tests.compile.test_several_inputs import NODES, SIGNATURE, TABLE, feeds
from tests.conftest import Run
from tests.support.real_files import plain, written
from ttac.errors import UsageError
from ttac.evaluation import cells
from ttac.evaluation.metrics import unpacked
from ttac.evaluation.named_data import named_inputs, open_named

COUNT = 12
LABELS = np.random.default_rng(4).integers(0, 5, COUNT)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    cells._adapter.cache_clear()
    return written(tmp_path, SIGNATURE, NODES, {"table": TABLE})


def data(**more: np.ndarray) -> dict[str, np.ndarray]:
    return {**feeds(COUNT), "labels": LABELS, **more}


def test_errors_and_shifts_of_single_inputs(model: Path) -> None:
    """`source` on the clean inputs, and on a shift in which one input has another array."""
    dark = feeds(COUNT)["x"] * 0.1
    arrays = data(**{"x/dark": dark, "temperature/cold": np.array([0.5], np.float32)})
    found = ttac.evaluate(model, arrays, methods=["source", "bn"], batch=4, protocols=["reset-each-shift"])
    assert not found.missing
    parts = {(r["method"], p["shift"]): p for r in found.results for p in r["parts"]}
    assert {shift for _, shift in parts} == {"clean", "dark", "cold"}
    for shift, change in {"clean": {}, "dark": {"x": dark}}.items():
        expected = np.concatenate(
            [plain(model, {n: rows(n, a, i) for n, a in {**feeds(COUNT), **change}.items()})["y"].argmax(1) for i in range(COUNT)]
        )  # fmt: skip
        np.testing.assert_array_equal(unpacked(parts["source", shift]["predictions"]), expected)
        assert parts["source", shift]["wrong"] == int((expected != LABELS).sum())
    assert parts["source", "cold"]["wrong"] == parts["source", "clean"]["wrong"]


def rows(name: str, array: np.ndarray, place: int) -> np.ndarray:
    """Sample number `place` of an input."""
    return array if name == "temperature" else array.take([place], 1 if name == "state" else 0)


def test_a_bundle_and_its_model_take_the_same_arrays(model: Path, tmp_path: Path) -> None:
    ttac.compile(model, method="bn", batch=4, output=tmp_path / "b.ttac")
    by_name = [{each.name: each for each in named_inputs([path], {})} for path in (model, tmp_path / "b.ttac")]
    assert by_name[0] == by_name[1] and by_name[0]["state"].axis == 1 and by_name[0]["temperature"].axis is None
    found = [ttac.evaluate(path, data(), methods=["bn"], batch=4) for path in (model, tmp_path / "b.ttac")]
    assert found[0].rows()[0]["error"] == found[1].rows()[0]["error"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": None}, "there is no array for the input `mask`"),
        ({"state": np.ones((2, 9, 5), np.float32)}, "differ in their number of samples"),
        ({"x/dark": np.ones((9, 3, 8, 8), np.float32)}, "differ in their number of samples"),
        ({"other": np.ones(4)}, "the model has no input `other`"),
        ({"ids": np.ones((COUNT, 4), np.float32)}, "the array of the input `ids` is float32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any], words: str, model: Path) -> None:
    arrays = {name: array for name, array in data(**change).items() if array is not None}
    with pytest.raises(UsageError) as refusal:
        open_named(arrays, named_inputs([model], {}))
    assert words in str(refusal.value)


def test_corruptions_need_a_single_input(model: Path) -> None:
    pytest.importorskip("imagecorruptions")
    with pytest.raises(UsageError, match="a single input"):
        ttac.evaluate(model, data(), methods=["source"], batch=4, corruptions=["fog"])


def test_models_with_other_inputs_are_evaluated_one_by_one(model: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    single = written(
        tmp_path / "one",
        "(float[N,3,8,8] x) => (float[N,3] y)",
        "f = ReduceMean <keepdims = 0, axes = [2, 3]> (x) y = Identity (f)",
    )
    with pytest.raises(UsageError, match="inputs of other names"):
        named_inputs([model, single], {})
    assert named_inputs([single], {}) == ()


@pytest.mark.slow
def test_bench_takes_several_inputs(model: Path, tmp_path: Path, run: Run) -> None:
    np.savez(tmp_path / "s.npz", **feeds(8))  # type: ignore[arg-type]
    for more in ([], ["--data", str(tmp_path / "s.npz")], ["--hold", "temperature=2"]):
        seen = run(
            "bench", str(model), "--methods", "bn", "--batch", "4", "--threads", "1", "--pairs", "7", "--json", *more
        )
        (row,) = json.loads(seen.out)["rows"]
        assert seen.code == 0 and row["ratio"] > 0
