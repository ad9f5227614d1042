"""DeYO: steps of the published code, the shuffled patches, and the models that it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.adapted import BATCH, KINDS, inputs, model, seed_of
from tests.support.official import SETTINGS, official, trajectory
from tests.support.whole_models import MODELS, compiled, executed, refused, samples
from ttac.errors import UnsupportedError


@pytest.mark.parametrize("kind", KINDS)
def test_five_steps_equal_the_published_code(kind: str, tmp_path: Path) -> None:
    """The transformer has no position embeddings, so both versions select no sample there."""
    found, expected = trajectory("deyo", kind, tmp_path), official("deyo", kind)
    assert expected["selected"].all() == (kind == "group")
    for name, value in expected.items():
        if name != "selected":
            ours = found[name.removeprefix("after/").replace(".weight", ".scale")]
            np.testing.assert_allclose(ours, value, rtol=0, atol=1e-4)


def test_the_selection_is_that_of_the_published_code(tmp_path: Path) -> None:
    bundle = compiled(model("group"), tmp_path, method="deyo", batch=BATCH, norms="keep", settings=SETTINGS["deyo"])
    adapter = ttac.load(bundle, threads=1)
    counts = []
    for x in inputs(seed_of("group"))["x"]:
        adapter.step(x)
        counts.append(adapter.stats["selected"])
    assert counts == official("deyo", "group")["selected"].tolist()


def test_shuffled_images_hold_the_same_patches(tmp_path: Path) -> None:
    bundle = compiled(MODELS["resnet"], tmp_path, method="deyo", batch=8)
    x = samples((3, 16, 16), 5)
    shuffled = executed(bundle, x)["shuffled"]
    assert shuffled.shape == x.shape and np.abs(shuffled - x).max() > 0.1

    def patches(images: np.ndarray) -> np.ndarray:
        return images.reshape(5, 3, 4, 4, 4, 4).transpose(0, 2, 4, 1, 3, 5).reshape(5, 16, -1)

    orders = []
    for before, after in zip(patches(x), patches(shuffled), strict=True):
        order = [int(np.flatnonzero((before == patch).all(1))[0]) for patch in after]
        assert sorted(order) == list(range(16))
        orders.append(order)
    assert len({tuple(order) for order in orders}) == 5, "every image has an order of its own"


def test_sides_that_do_not_divide_are_refused_with_a_way_out() -> None:
    message = refused(UnsupportedError, MODELS["resnet"], method="deyo", settings={"patches": 5})
    assert "do not divide into 5 patches" in message


def test_signals_are_refused() -> None:
    assert "only images" in refused(UnsupportedError, MODELS["signal"], method="deyo")
