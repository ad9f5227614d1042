"""`ttac.recommend` and `ttac recommend`: the choice, the figures, and wrong usage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from tests.conftest import Run
from ttac import demo, pipeline
from ttac.evaluation.recommendation import TIE, Candidate, chosen
from ttac.evaluation.sensor_shifts import SHIFTS, shifted
from ttac.pipeline import compile_model

DEMO = Path(demo.__file__).parent
GROUP_NORM = DEMO / "fashion_resnet_gn.onnx"


def candidate(method: str, error: float, cost: float = 1.0, slow: bool = False) -> Candidate:
    return Candidate(method=method, error=error, clean=0, worst=error, cost=cost, peak_bytes=None, slow=slow)


@pytest.mark.parametrize(
    ("others", "method"),
    [
        ([("a", 0.30, 2.0), ("b", 0.20, 3.0)], "b"),
        ([("a", 0.20 + TIE / 2, 2.0), ("b", 0.20, 3.0)], "a"),
        ([("a", 0.50 - TIE / 2, 2.0)], "source"),
        ([("a", 0.60, 0.5)], "source"),
    ],
    ids=["the lowest error", "the cheaper of two equals", "no gain", "harm"],
)
def test_the_choice(others: Sequence[tuple[str, float, float]], method: str) -> None:
    found, because = chosen([candidate("source", 0.5), *(candidate(*each) for each in others)])
    assert found == method
    assert "%" in because or "no method is more than 0.5 points better" in because


def test_methods_that_are_too_slow_are_never_chosen() -> None:
    found, _ = chosen([candidate("source", 0.5), candidate("a", 0.1, 9.0, slow=True), candidate("b", 0.3, 2.0)])
    assert found == "b"


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_grow_with_the_severity(name: str) -> None:
    x = np.random.default_rng(0).normal(3, (1, 5), (64, 30, 2)).transpose(0, 2, 1).astype(np.float32)
    distances = [np.abs(shifted(x, name, severity) - x).mean() for severity in (1, 2, 3, 4, 5)]
    assert all(low <= high for low, high in pairwise(distances)) and distances[0] < distances[4]
    assert np.array_equal(shifted(x, name, 3), shifted(x, name, 3))
    change = np.abs(shifted(x, name, 5) - x).mean(axis=(0, 2))
    assert change[1] / change[0] == pytest.approx(5, rel=0.1)  # in units of the deviation of the channel


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared samples without labels."""
    path = tmp_path_factory.mktemp("samples") / "x.npy"
    with np.load(DEMO / "fashion_calibration.npz") as file:
        images = file[file.files[0]][:128]
    np.save(path, images.reshape(-1, 1, 28, 28).astype(np.float32) / 255)
    return path


def test_a_model_of_floats_without_labels(floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def counted(model: Path, **options: Any) -> Any:
        compiled.append(options["method"])
        return compile_model(model, **options)

    monkeypatch.setattr(pipeline, "compile_model", counted)
    found = ttac.recommend(
        DEMO / "fashion_resnet_bn.onnx",
        floats,
        methods=["bn", "t3a"],
        shifts=["noise", "offset"],
        output=tmp_path / "o",
    )
    figures = {each.method: each for each in found.candidates}
    assert set(figures) == {"source", "bn", "t3a"} and not found.labelled
    assert figures["source"].clean == 0 and figures["source"].cost == 1
    assert sorted(compiled) == ["bn", "source", "t3a"], "the source model gives the labels and competes"
    shifts = {row["shift"] for row in found.evaluation.rows()}
    assert shifts == {"clean", "noise", "offset"}
    lowest = min(found.candidates, key=lambda each: each.error)
    assert figures[found.method].error <= lowest.error + TIE and found.candidates[0].method == found.method


def test_the_command_names_refusals_and_the_next_step(run: Run, floats: Path) -> None:
    seen = run("recommend", str(GROUP_NORM), "--calibration", str(floats), "--methods", "mecta,neo", "--shifts", "gain")
    assert seen.code == 0 and "not run: `mecta`: " in seen.err
    assert seen.out.splitlines()[-1].startswith("take `")
    table = [line.split()[0] for line in seen.out.splitlines()[1:3]]
    assert sorted(table) == ["neo", "source"]


def test_the_json_holds_every_figure(run: Run, floats: Path) -> None:
    seen = run(
        "recommend", str(GROUP_NORM), "--calibration", str(floats), "--methods", "neo", "--shifts", "gain", "--json"
    )
    found = json.loads(seen.out)
    assert set(found) == {"method", "because", "labelled", "candidates", "refused", "rows"}
    assert len(found["rows"]) == 4 and {each["method"] for each in found["candidates"]} == {"source", "neo"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shifts", "nois"], "have no shift `nois`"),
        (["--severity", "6"], "there is no severity 6"),
        (["--samples", "8"], "--samples"),
        (["--methods", "tnt"], "there is no method `tnt`"),
        (["--order", "sorted"], "--order"),
    ],
    ids=["shift", "severity", "samples", "method", "order"],
)
def test_wrong_usage_says_so(run: Run, floats: Path, options: list[str], words: str) -> None:
    seen = run("recommend", str(GROUP_NORM), "--calibration", str(floats), *options)
    assert seen.code == 2 and words in seen.err


def test_too_few_samples_are_refused(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((20, 1, 28, 28), np.float32))
    seen = run("recommend", str(GROUP_NORM), "--calibration", str(tmp_path / "few.npy"))
    assert seen.code == 2 and "there are 20 samples, 32 are needed" in seen.err


def test_images_are_corrupted(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    with np.load(DEMO / "fashion_calibration.npz") as file:
        np.savez(tmp_path / "images.npz", x=file[file.files[0]][:64])
    seen = run(
        *("recommend", str(GROUP_NORM), "--calibration", str(tmp_path / "images.npz"), "--methods", "neo"),
        *("--shifts", "contrast", "--json"),
    )
    assert seen.code == 0 and {row["shift"] for row in json.loads(seen.out)["rows"]} == {"clean", "contrast"}
