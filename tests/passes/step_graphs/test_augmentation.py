"""Distortions of images: each against torchvision, the identity at neutral numbers, the range, the random numbers."""

from __future__ import annotations

import colorsys
import itertools

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.consistency_case import NEUTRAL, STAGES, Arrays, drawn, golden, initial, normals, numbers, pictures
from ttac import targets
from ttac.errors import UnsupportedError
from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import run
from ttac.passes.lower.lower import lower
from ttac.passes.operators.random_numbers import Numbers, seeded
from ttac.passes.step_graphs.augmentation import (
    DRAWN,
    Drawn,
    distort,
    draw,
    refuse_other_than_images,
)

SINGLE = ir.DataType.FLOAT


def built(opset: int = 18) -> Builder:
    return Builder(ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="g"), "test", opset)


def graph_input(op: Builder, name: str, shape: list[int | str], dtype: ir.DataType = SINGLE) -> ir.Value:
    value = ir.val(name, dtype=dtype, shape=ir.Shape(shape))
    op.graph.inputs.append(value)
    return value


def outputs(op: Builder, feeds: Arrays, **values: ir.Value) -> Arrays:
    """The values that the engine computes in the graph under construction."""
    made = {name: op.Identity(value) for name, value in values.items()}
    op.graph.outputs.extend(made.values())
    found = run(lower(ir.Model(op.graph, ir_version=8), targets.find("cpu")), feeds)
    return {name: found[str(value.name)] for name, value in made.items()}


def distorted(x: np.ndarray, changed: dict[str, float], noise: np.ndarray | None = None, opset: int = 18) -> np.ndarray:
    op = built(opset)
    images = graph_input(op, "x", ["N", *x.shape[1:]])
    values = Drawn({name: graph_input(op, name, [1]) for name in DRAWN}, graph_input(op, "noise", ["N", *x.shape[1:]]))
    given = {name: np.array([value], np.float32) for name, value in {**NEUTRAL, **changed}.items()}
    feeds = {**given, "x": x, "noise": np.zeros_like(x) if noise is None else noise}
    return outputs(op, feeds, y=distort(op, images, values))["y"]


# --- each distortion --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stage", list(STAGES))
def test_a_distortion_is_that_of_torchvision(stage: str, channels: int) -> None:
    x, expected = pictures(channels), golden("stages")[f"{stage}/{channels}"]
    np.testing.assert_allclose(distorted(x, STAGES[stage]), expected, atol=1e-5, rtol=0)
    colourless = channels == 1 and set(STAGES[stage]) <= {"saturation", "hue"}
    assert (np.abs(expected - x).max() > 0.02) == (not colourless), "the golden numbers show nothing"


@pytest.mark.parametrize("channels", [1, 3])
def test_neutral_numbers_change_nothing(channels: int) -> None:
    np.testing.assert_allclose(distorted(pictures(channels), {}), pictures(channels), atol=1e-5, rtol=0)


def test_the_sampling_of_opset_20_is_that_of_18() -> None:
    x = pictures(3)
    np.testing.assert_array_equal(distorted(x, STAGES["all"], opset=20), distorted(x, STAGES["all"]))


def test_hue_is_that_of_the_standard_library() -> None:
    """All corners and edges of the colour cube, where two channels are equal, and some colours inside."""
    colours = list(itertools.product((0.0, 0.3, 1.0), repeat=3))
    x = np.array(colours, np.float32).T.reshape(1, 3, 1, -1)
    hsv = [colorsys.rgb_to_hsv(*colour) for colour in x[0, :, 0].T.astype(float)]
    expected = np.array([colorsys.hsv_to_rgb((h + 0.05) % 1, s, v) for h, s, v in hsv]).T.reshape(x.shape)
    np.testing.assert_allclose(distorted(x, {"hue": 0.05}), expected, atol=1e-5)


def test_noise_is_added_before_the_clip() -> None:
    x, noise = pictures(1), np.random.RandomState(0).standard_normal(pictures(1).shape).astype(np.float32)
    np.testing.assert_allclose(distorted(x, {}, noise), np.clip(x + 0.005 * noise, 0, 1), atol=1e-5)


@pytest.mark.parametrize("ends", [0, 1])
def test_what_is_drawn_stays_in_the_range(ends: int) -> None:
    """Every number at one end of its range, and much noise: from 0 to 1, and finite."""
    x = pictures(3)
    found = distorted(x, {name: bounds[ends] for name, bounds in DRAWN.items()}, 100 * np.ones_like(x) - 200 * x)
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1


# --- random numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "width"), [(3, 6), (3, 5), (2, 1)])
def test_numbers_are_those_of_the_generator(count: int, width: int) -> None:
    """Of fewer images than planned the same noise, and the state goes on by the same number of steps."""
    op = built()
    state = graph_input(op, "state", [2], ir.DataType.INT64)
    images = graph_input(op, "x", ["N", 3, 4, width])
    found = draw(op, Numbers(op, state), images, 3)
    following = Numbers(op, state).following(1000)
    feeds = {"state": seeded(7), "x": np.zeros((count, 3, 4, width), np.float32)}
    got = outputs(op, feeds, noise=found.noise, following=following, **found.numbers)
    stream = numbers(initial(7))
    for name, value in drawn(stream).items():
        assert got[name] == pytest.approx(value, abs=1e-5)
    expected = normals(stream, (3, 3, 4, width))[:count]
    np.testing.assert_allclose(got["noise"], expected, atol=1e-4)
    moved = initial(7)
    walk = numbers(moved)
    for _ in range(1000):
        next(walk)
    np.testing.assert_array_equal(got["following"], moved)


def test_numbers_are_even_and_normal() -> None:
    """Of a quarter of a million: mean, deviation, skewness and tails as of the distributions."""
    op = built()
    state = graph_input(op, "state", [2], ir.DataType.INT64)
    images = graph_input(op, "x", ["N", 1, 256, 256])
    made = Numbers(op, state)
    noise = made.normal(5, op.Shape(images, start=0, end=1), 4, [1, 256, 256])
    feeds = {"state": seeded(0), "x": np.zeros((4, 1, 256, 256), np.float32)}
    got = outputs(op, feeds, noise=noise, even=made.uniform(4096))
    z, u = got["noise"].astype(float).ravel(), got["even"].astype(float)
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and abs((z**3).mean()) < 0.03
    assert abs((np.abs(z) > 1.96).mean() - 0.05) < 0.003 and abs((z[1:] * z[:-1]).mean()) < 0.01
    assert 0 < u.min() < 0.002 and 0.998 < u.max() <= 1 and abs(u.mean() - 0.5) < 0.02 and abs(u.var() - 1 / 12) < 0.004


def test_seeds_are_different_and_allowed() -> None:
    """A state of 0 would stay 0."""
    states = {tuple(seeded(seed)) for seed in range(100)}
    assert len(states) == 100 and all(0 < s < 2147483563 and 0 < t < 2147483399 for s, t in states)


# --- other inputs than images ---------------------------------------------------------------------------

ASKED = {"where": "`--set a`", "hint": "leave `a` out"}


@pytest.mark.parametrize("shape", [["N", 12], ["N", 3, 40], ["N", 4, 8, 8], ["N", 8, 8, 3], ["N", 3, 4, 8, 8]])
def test_other_inputs_than_images_are_refused(shape: list[int | str]) -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)only images.*--set a.*`x`") as caught:
        refuse_other_than_images(ir.val("x", dtype=SINGLE, shape=ir.Shape(shape)), None, **ASKED)
    assert ("channels first" in caught.value.hint) == (shape[-1] == 3 and len(shape) == 4)


def test_answers_for_each_position_are_refused() -> None:
    x = ir.val("x", dtype=SINGLE, shape=ir.Shape(["N", 3, 8, 8]))
    refuse_other_than_images(x, Head(kind="classes", shape=("N", 6), axis=1, values="logits"), **ASKED)
    with pytest.raises(UnsupportedError, match="moves positions"):
        refuse_other_than_images(x, Head(kind="dense", shape=("N", 6, 8, 8), axis=1, values="logits"), **ASKED)
