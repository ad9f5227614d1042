"""Pieces of work here, in processes and on a local Ray: the same results, and the restarts of lost workers."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import evaluation_work as work
from ttac.errors import RuntimeMissingError, UsageError
from ttac.evaluation import sweep
from ttac.evaluation.sweep import perform

PLACES: list[Any] = [
    pytest.param({}, id="here"),
    pytest.param({"jobs": 2}, id="processes", marks=pytest.mark.slow),
    pytest.param({"jobs": 2, "cluster": "ray"}, id="ray", marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def calm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let workers find the tests' modules, and ignore warnings of Ray while it starts."""
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", root)
    place = request.node.callspec.params.get("place", {}) if hasattr(request.node, "callspec") else {}
    for needed in ("joblib", "ray") if place.get("cluster") else ("joblib",) if place else ():
        pytest.importorskip(needed)
    with warnings.catch_warnings():
        if place.get("cluster"):
            warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("place", PLACES)
def test_results_and_failures_come_back(place: dict[str, Any]) -> None:
    found = sorted(perform(work.halved, [4, 1, 8], **place), key=lambda done: done.number)
    assert [done.result for done in found] == [2, None, 4]
    assert found[1].failure is not None and found[1].failure.problem == "internal error, ValueError: 1 is odd"


@pytest.mark.parametrize("place", PLACES[1:])
def test_the_pieces_of_a_lost_worker_are_run_again(place: dict[str, Any], tmp_path: Path) -> None:
    items = [(str(tmp_path / "mark"), number) for number in range(5)]
    found = list(perform(work.dies_once, items, **place))
    assert sorted((done.number, done.result) for done in found) == [(number, number**2) for number in range(5)]
    assert (tmp_path / "mark").exists(), "no worker was lost"


@pytest.mark.parametrize("place", PLACES[1:2])
def test_workers_that_are_always_lost_end_it(place: dict[str, Any]) -> None:
    with pytest.raises(RuntimeMissingError, match="workers were lost 4 times over, 2 pieces"):
        list(perform(work.always_dies, [1, 2], **place))


@pytest.mark.slow
def test_a_worker_is_lost_before_all_pieces_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parallel = pytest.importorskip("joblib").Parallel
    start = parallel.dispatch_one_batch

    def start_late(self: Any, pieces: Any) -> bool:
        time.sleep(2)
        return bool(start(self, pieces))

    monkeypatch.setattr(parallel, "dispatch_one_batch", start_late)
    items = [(str(tmp_path / "mark"), number) for number in (2, 3)]
    found = list(perform(work.dies_once, items, jobs=2))
    assert sorted((done.number, done.result) for done in found) == [(0, 4), (1, 9)]


def test_an_unknown_cluster() -> None:
    with pytest.raises(UsageError, match="no cluster `slurm`"):
        perform(work.halved, [2], cluster="slurm")


@pytest.mark.parametrize(("missing", "options"), [("joblib", {"jobs": 2}), ("ray", {"cluster": "ray"})])
def test_a_missing_package_is_reported(missing: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RuntimeMissingError, match=r"need"):
        list(sweep.perform(work.halved, [2, 4], **options))
