"""Samples that a model takes but that look wrong, and shapes with a known way to fit."""

from __future__ import annotations

import numpy as np
import pytest

from ttac.errors import UsageError
from ttac.samples.doubts import doubts
from ttac.samples.images import Preparation, stream_of

GREY, COLOUR = Preparation(sample=(1, 16, 16)), Preparation(sample=(3, 16, 12))
RAMP = np.linspace(0, 1, 16, dtype=np.float32) + np.zeros((4, 1, 16, 1), np.float32)
NOISE = np.random.default_rng(0).standard_normal((8, 1, 16, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (RAMP, []),
        (np.round(RAMP * 255), ["whole numbers up to 255"]),
        (RAMP * 254, []),
        (np.round(RAMP * 10), []),
        (NOISE, ["look like noise"]),
        (np.cumsum(NOISE, axis=-1), []),
        (np.zeros_like(NOISE), []),
    ],
)
def test_doubts(samples: np.ndarray, words: list[str]) -> None:
    said = doubts(samples, GREY)
    assert len(said) == len(words) and all(word in line for word, line in zip(words, said, strict=True))


def test_noise_with_channels_last() -> None:
    how = Preparation(sample=(16, 16, 1), layout="NHWC")
    assert doubts(NOISE.transpose(0, 2, 3, 1), how) and not doubts(RAMP.transpose(0, 2, 3, 1), how)


def test_short_series_are_not_called_noise() -> None:
    assert doubts(np.random.default_rng(0).standard_normal((8, 3, 100)), Preparation(sample=(3, 100))) == []


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((16, 12, 3), "x.transpose(0, 3, 1, 2)"),
        ((16, 12), "np.repeat(x[:, None], 3, axis=1)"),
        ((1, 16, 12), "np.repeat(x, 3, axis=1)"),
        ((3, 8, 8), "resize or transpose"),
    ],
)
def test_floats_of_another_shape_name_the_way(shape: tuple[int, ...], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        stream_of(np.zeros((2, *shape), np.float32), COLOUR)
    assert hint in str(caught.value.hint)


def test_channels_first_and_colour_for_other_models() -> None:
    last = Preparation(sample=(16, 12, 3), layout="NHWC")
    for how, shape, hint in ((last, (3, 16, 12), "transpose(0, 2, 3, 1)"), (GREY, (3, 16, 16), "average the channels")):
        with pytest.raises(UsageError) as caught:
            stream_of(np.zeros((2, *shape), np.float32), how)
        assert hint in str(caught.value.hint)
