"""Every gradient rule against finite differences, torch and the engine, on the graphs of `gradient_cases`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import ttac.passes.differentiate.rules
from tests.support.case_models import BATCHES, DOUBLE, SINGLE, Feeds, check, drawn, engine, joint_of, reference
from tests.support.gradient_case import Case
from tests.support.gradient_cases import CASES
from tests.support.torch_recurrent import GATES, recurrent
from ttac.passes.differentiate.reverse_walk import RULES
from ttac.passes.graph.composites import COMPOSITES


def over(cases: Sequence[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=str)


@over(CASES)
def test_finite_differences(case: Case) -> None:
    exact = case.oracle == "reference"
    joint = joint_of(case, DOUBLE if exact else SINGLE)
    check(case, joint.whole)
    prepare = reference if exact else engine
    whole, forward = prepare(joint.whole), prepare(joint.forward)
    step, tolerance, floor = (1e-5, 1e-6, 1e-8) if exact else (1e-2, 1e-3, 1e-3)
    for seed in range(len(BATCHES)):
        feeds = drawn(case, joint, seed)
        _, *gradients = whole(feeds)
        for name, gradient in zip(joint.wrt, gradients, strict=True):
            assert gradient.shape == feeds[name].shape
            direction = np.random.default_rng(seed + 7).standard_normal(gradient.shape)
            moved = [{**feeds, name: feeds[name] + sign * step * direction} for sign in (1, -1)]
            ahead, behind = (float(forward(feed)[0]) for feed in moved)
            scale = float(np.abs(gradient * direction).sum())
            error = (gradient * direction).sum() - (ahead - behind) / (2 * step)
            assert abs(error) <= tolerance * scale + floor, name


@over([case for case in CASES if case.oracle == "reference"])
def test_engine_agrees_with_the_reference(case: Case) -> None:
    single, double = joint_of(case, SINGLE), joint_of(case, DOUBLE)
    check(case, single.whole)
    run, exact = engine(single.whole), reference(double.whole)
    for seed in range(len(BATCHES)):
        feeds = {name: array.astype(np.float32).astype(float) for name, array in drawn(case, double, seed).items()}
        for expected, found in zip(exact(feeds), run(feeds), strict=True):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


@over([case for case in CASES if len(case.trained) > 1])
def test_each_input_alone_gets_the_same_gradient(case: Case) -> None:
    together = joint_of(case, SINGLE)
    feeds = drawn(case, together, 0)
    _, *expected = engine(together.whole)(feeds)
    for position, gradient in zip(case.trained, expected, strict=True):
        alone = joint_of(case, SINGLE, only=position)
        _, found = engine(alone.whole)(feeds)
        np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-5)


@over(list({case.op: case for case in CASES if case.opset == 18 and not case.retired}.values()))
def test_rules_hold_in_opset_21(case: Case) -> None:
    check(case, joint_of(case, SINGLE, opset=21).whole)


@over([case for case in CASES if case.torch])
def test_torch_agrees(case: Case) -> None:
    pytest.importorskip("torch")
    joint = joint_of(case, SINGLE)
    feeds = drawn(case, joint, 1)
    expected = torch_gradients(case, feeds, joint.wrt)
    _, *found = engine(joint.whole)(feeds)
    for name, gradient in zip(joint.wrt, found, strict=True):
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-4)


def torch_gradients(case: Case, feeds: Feeds, wrt: Sequence[str]) -> Feeds:
    import torch

    torch.set_num_threads(1)
    tensors = {name: torch.tensor(array, requires_grad=name in wrt) for name, array in feeds.items()}
    inputs = [tensors.get(f"x{position}") for position in range(len(case.inputs))]
    outputs = recurrent(case, *inputs) if case.op in GATES else [torch_forward(case, *inputs)]
    used = case.used or range(len(outputs))
    loss = sum((outputs[place] * tensors[f"weights{place}"]).sum() for place in used if f"weights{place}" in tensors)
    loss.backward()
    return {name: tensors[name].grad.numpy() for name in wrt}


def torch_forward(case: Case, x: Any, w: Any = None, b: Any = None, *_: Any) -> Any:
    import torch.nn.functional as F

    given, count = case.attributes, x.dim() - 2
    pads = given.get("pads", [0] * 2 * count)
    assert pads[:count] == pads[count:]
    strides = given.get("strides", [1] * count)
    dilations = given.get("dilations", [1] * count)
    if case.op == "Conv":
        return getattr(F, f"conv{count}d")(x, w, b, strides, pads[:count], dilations, given.get("group", 1))
    if case.op == "ConvTranspose":
        extra = given.get("output_padding", [0] * count)
        function = getattr(F, f"conv_transpose{count}d")
        return function(x, w, b, strides, pads[:count], extra, given.get("group", 1), dilations)
    ceil = bool(given.get("ceil_mode", 0))
    if case.op == "MaxPool":
        return getattr(F, f"max_pool{count}d")(x, given["kernel_shape"], strides, pads[:count], dilations, ceil)
    if case.op == "AveragePool":
        padded = bool(given.get("count_include_pad", 0))
        return getattr(F, f"avg_pool{count}d")(x, given["kernel_shape"], strides, pads[:count], ceil, padded)
    mode = {"nearest": "nearest", "linear": "bilinear"}[given["mode"]]
    return F.interpolate(x, scale_factor=2, mode=mode)


STRAIGHT = {"Rounded", "Counted"}
"""Rules that replace a derivative: `test_quantize_gradients.py` has them."""


def test_every_rule_has_a_case() -> None:
    assert sorted(set(RULES) - {case.op for case in CASES} - STRAIGHT) == []


def test_the_cases_use_every_composite_of_the_rules() -> None:
    modules = {module.__name__ for module in ttac.passes.differentiate.rules.VOCABULARIES}
    written = {name for name, composite in COMPOSITES.items() if composite.expand.__module__ in modules}
    used = {name for case in CASES if case.oracle == "reference" for name in joint_of(case, SINGLE).operators}
    assert sorted(written - used) == []
