"""The corruptions: names, shapes, and the same numbers whatever else is in the array."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np
import pytest

from ttac.errors import RuntimeMissingError, UsageError
from ttac.evaluation import corruptions
from ttac.evaluation.corruptions import NAMES, chosen, corrupted

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), np.uint8)


def test_names() -> None:
    assert chosen(["all"]) == NAMES and len(NAMES) == 15
    assert chosen(["fog", "snow"]) == ("fog", "snow") and chosen([]) == ()
    with pytest.raises(UsageError) as caught:
        chosen(["frogg"])
    assert caught.value.hint == "did you mean `fog`?"
    with pytest.raises(UsageError, match="named twice"):
        chosen(["fog", "fog"])


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)
    with pytest.raises(RuntimeMissingError) as caught:
        corruptions.version()
    assert caught.value.hint == "`pip install 'ttac[eval]'`"


@pytest.mark.parametrize("array", [np.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 2, 4, 4), np.uint8), np.zeros(3)])
def test_only_images_can_be_corrupted(array: np.ndarray) -> None:
    with pytest.raises(UsageError, match="cannot be corrupted"):
        corrupted(array, "contrast", 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_corruption(name: str) -> None:
    pytest.importorskip("imagecorruptions")
    state: Any = np.random.get_state()
    found = corrupted(IMAGES, name, 3)
    assert found.shape == IMAGES.shape and found.dtype == np.uint8 and (found != IMAGES).any()
    np.testing.assert_array_equal(found[1:], corrupted(IMAGES[1:], name, 3, first=1))
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])
    colour = corrupted(np.repeat(IMAGES[:1, :, :, :], 3, axis=1), name, 3)
    assert colour.shape == (1, 3, 28, 28)


@pytest.mark.slow
def test_seeds_and_severities_differ() -> None:
    pytest.importorskip("imagecorruptions")
    grey = np.full((1, 1, 32, 32), 128, np.uint8)
    first = corrupted(grey, "gaussian_noise", 1)
    assert (corrupted(grey, "gaussian_noise", 1, seed=1) != first).any()
    assert corrupted(grey, "gaussian_noise", 5).std() > first.std()
