"""`--train SELECTOR`: which norms adapt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.source_models import saved, source
from ttac.errors import UnsupportedError, UsageError
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.drift import disturbances, drifts
from ttac.passes.norms.norm_sites import NormSite, find_norms
from ttac.passes.norms.selectors import selected_sites, wants_ranking

MODELS = Path(__file__).resolve().parents[2] / "models"
DRIFT = [0.1, 0.9, 0.3, 0.3, 0.5, 0.0]


@pytest.fixture(scope="module")
def sites() -> list[NormSite]:
    """Six norms in the order they run."""
    return list(find_norms(normalise(load(MODELS / "resnet.onnx"), simplifier=None)).sites)


def positions(sites: Sequence[NormSite], selector: str) -> list[int]:
    asked: list[int] = []

    def ranking(given: Sequence[NormSite]) -> Sequence[float]:
        asked.append(len(given))
        return DRIFT

    found = [list(sites).index(site) for site in selected_sites(sites, selector, ranking)]
    assert bool(asked) == wants_ranking(selector)
    return found


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("norms", [0, 1, 2, 3, 4, 5]),
        ("first:2", [0, 1]),
        ("last:2", [4, 5]),
        ("first:99", [0, 1, 2, 3, 4, 5]),
        ("first:30%", [0, 1]),
        ("last:1%", [5]),
        ("first:100%", [0, 1, 2, 3, 4, 5]),
        ("every:1", [0, 1, 2, 3, 4, 5]),
        ("every:2", [0, 2, 4]),
        ("every:9", [0]),
        ("auto:3", [1, 2, 4]),
        ("auto:50%", [1, 2, 4]),
        ("first:1, last:1", [0, 5]),
        ("first:2,every:3", [0, 1, 3]),
    ],
)
def test_what_a_selector_takes(selector: str, expected: list[int], sites: list[NormSite]) -> None:
    assert len(sites) == 6
    assert positions(sites, selector) == expected


def test_names_and_counts_together(sites: list[NormSite]) -> None:
    assert positions(sites, f"{sites[3].name},first:1") == [0, 3]


def test_a_share_of_the_values_bounds_auto(sites: list[NormSite]) -> None:
    values = [site.channels * site.spatial for site in sites]
    for share in (10, 20, 40, 100):
        found = positions(sites, f"auto:6@{share}%")
        assert sum(values[i] for i in found) <= share / 100 * sum(values)
    assert positions(sites, "auto:6@100%") == [0, 1, 2, 3, 4, 5]
    largest = max(range(6), key=values.__getitem__)
    tight = 100 * (max(values) - 1) / sum(values)
    assert largest not in positions(sites, f"auto:6@{tight}%")


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ("first:0", "`0` is not a count of norms"),
        ("last:-1", "`-1` is not a count"),
        ("first:", "`` is not a count"),
        ("every:2.5", "`2.5` is not a count"),
        ("every:30%", "`30%` is not a count"),
        ("first:0%", "`0%` is not a percentage"),
        ("auto:101%", "`101%` is not a percentage"),
        ("auto:nan%", "`nan%` is not a percentage"),
        ("auto:2@5", "`5` is not a percentage"),
        ("auto:2@", "`` is not a percentage"),
        ("first:2@5%", "`first` takes no fraction"),
        ("firts:2", "`firts:2` fits no norm site"),
        (",", "`,` fits no norm site"),
    ],
)
def test_selectors_that_fit_nothing(selector: str, said: str, sites: list[NormSite]) -> None:
    with pytest.raises(UsageError) as caught:
        selected_sites(sites, selector, lambda sites: DRIFT)
    assert said in caught.value.problem and caught.value.exit_code == 2 and caught.value.hint


def test_auto_needs_calibration(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="`auto` chooses the norms that drift most") as caught:
        ttac.compile(saved(source(), tmp_path), method="bn", train="auto:1")
    assert caught.value.exit_code == 3 and "--calibration PATH" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_drift_is_the_distance_of_normal_distributions(tmp_path: Path) -> None:
    """A net whose only norm sees the input itself: its drift follows from the disturbances by hand."""
    text = """
    net (float[batch,3,8,8] x) => (float[batch,3] y) {
      z = BatchNormalization (x, "s", "b", "m", "v")
      p = GlobalAveragePool (z)
      y = Flatten (p)
    }
    """
    weights = {name: np.ones(3, np.float32) for name in "sbmv"}
    plain = normalise(load(saved(source(text, weights), tmp_path)), simplifier=None)
    x = np.random.default_rng(0).normal(2.0, 3.0, (40, 3, 8, 8)).astype(np.float32)
    (found,) = drifts(plain, find_norms(plain).sites, x)
    expected = []
    for version in disturbances(x):
        mean, other = x.mean((0, 2, 3), np.float64), version.mean((0, 2, 3), np.float64)
        deviation, wide = x.std((0, 2, 3), np.float64), version.std((0, 2, 3), np.float64)
        expected.append(np.mean(((other - mean) ** 2 + (wide - deviation) ** 2) / (deviation**2 + 1e-5)))
    assert found == pytest.approx(np.mean(expected), rel=1e-4)


def test_disturbances_are_four_and_keep_what_they_should() -> None:
    x = np.random.default_rng(0).standard_normal((5, 2, 7, 6)).astype(np.float32)
    noisy, shifted, dull, blurred = disturbances(x)
    assert all(version.shape == x.shape and version.dtype == np.float32 for version in (noisy, shifted, dull, blurred))
    np.testing.assert_allclose(shifted - x, 0.5 * x.std(), rtol=1e-5)
    np.testing.assert_allclose(dull.std((1, 2, 3)), 0.5 * x.std((1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(blurred[:, :, 3, 3], x[:, :, 2:5, 2:5].mean((2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(blurred[:, :, 0, 3], x[:, :, [0, 0, 1], 2:5].mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(disturbances(x), (noisy, shifted, dull, blurred), strict=True))


def test_a_bundle_tells_what_drifts(tmp_path: Path) -> None:
    model = MODELS / "resnet.onnx"
    said: list[str] = []
    shape = [int(size) for size in load(model).graph.inputs[0].shape[1:]]  # type: ignore[arg-type,index]
    x = np.random.default_rng(0).standard_normal((48, *shape)).astype(np.float32)
    bundle = ttac.compile(model, method="bn", train="auto:2", calibration=x, batch=4, dry_run=True, say=said.append)
    assert len(bundle.manifest["sites"]) == 2
    (line,) = [line for line in said if "norms adapt, which see" in line]
    assert all(site["name"] in line for site in bundle.manifest["sites"])
    rows = bundle.report["adapts"]
    assert [row["name"] for row in rows] == [site["name"] for site in bundle.manifest["sites"]]
    assert all(row["drift"] > 0 for row in rows)
