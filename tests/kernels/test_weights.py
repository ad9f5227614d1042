"""ConvWeightGrad, ReorderWeights and the 8-bit saves against NumPy in float64, and the weight gradient in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ttac_kernels", reason="needs ttac-kernels (make kernels)")

from tests.support.kernel_session import blocked, run
from tests.support.kernel_weight_case import check_adam, check_reorder, check_rows, check_weight_gradient


@pytest.mark.parametrize("first", range(0, 90, 30))
def test_random_cases_agree_with_numpy_in_float64(first: int) -> None:
    for seed in range(first, first + 30):
        check_weight_gradient(seed)
        check_reorder(seed)
        check_rows(seed)
        check_adam(seed)


@pytest.mark.parametrize("seed", range(6))
def test_the_number_of_threads_changes_no_bit(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, dy = (random.standard_normal((5, 32, 9, 7)).astype(np.float32) for _ in range(2))
    attributes = {"block": 16, "kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "shape": [32, 32]}
    made = [run("ConvWeightGrad", {"x": x, "dy": dy}, ["dw"], attributes, threads)["dw"] for threads in (1, 4)]
    assert np.array_equal(*made)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_map_of_several_strips_gives_the_sums_of_its_rows(kernel: int) -> None:
    random, pad = np.random.default_rng(0), kernel // 2
    x, dy = (random.standard_normal((1, 32, 49, 23)).astype(np.float32) for _ in range(2))
    attributes = {"block": 16, "kernel_shape": [kernel] * 2, "pads": [pad] * 4, "shape": [32, 32]}
    found = run("ConvWeightGrad", {"x": blocked(x, 16), "dy": blocked(dy, 16)}, ["dw"], attributes)["dw"]
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    for i, j in np.ndindex(kernel, kernel):
        expected = np.einsum("nohw,nihw->oi", dy.astype(np.float64), padded[:, :, i : i + 49, j : j + 23])
        assert np.abs(found[:, :, i, j] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("group", "stride", "kernel"), [(1, 1, 3), (1, 2, 3), (2, 1, 3), (1, 1, 1), (1, 2, 1)])
def test_a_weight_gradient_is_that_of_pytorch(group: int, stride: int, kernel: int) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    random, pad = np.random.default_rng(0), kernel // 2
    x = random.standard_normal((3, 32, 10, 8)).astype(np.float32)
    conv = torch.nn.Conv2d(32, 48 - 16 * (group > 1), kernel, stride, pad, groups=group, bias=False).double()
    y = conv(torch.from_numpy(x).double())
    dy = random.standard_normal(tuple(y.shape)).astype(np.float32)
    y.backward(torch.from_numpy(dy).double())
    expected = conv.weight.grad.numpy()
    attributes = {
        "block": 16,
        "kernel_shape": [kernel, kernel],
        "strides": [stride, stride],
        "pads": [pad] * 4,
        "group": group,
        "shape": list(expected.shape[:2]),
    }
    found = run("ConvWeightGrad", {"x": blocked(x, 16), "dy": blocked(dy, 16)}, ["dw"], attributes)["dw"]
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max() * 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": [48, 32]}, "not the channels of x and dy"),
        ({"shape": [32]}, "not outputs and inputs of a group"),
        ({"group": 3}, "does not divide the outputs"),
        ({"x_block": 4}, "neither 1 nor the block"),
        ({"strides": [2, 2]}, "not of the shape of the convolution's output"),
    ],
)
def test_a_weight_gradient_that_does_not_fit_is_refused(changed: dict[str, object], message: str) -> None:
    x = np.zeros((1, 32, 4, 4), np.float32)
    attributes = {"block": 16, "kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "shape": [32, 32], **changed}
    with pytest.raises(Exception, match=message):
        run("ConvWeightGrad", {"x": x, "dy": x}, ["dw"], attributes)


@pytest.mark.parametrize("places", [[1, 0], [0, 9], [-1, 0]])
def test_places_that_do_not_ascend_are_refused(places: list[int]) -> None:
    inputs = {
        "values": np.zeros((2, 8), np.int8),
        "scale": np.ones(2, np.float32),
        "places": np.array(places),
        "mean": np.zeros(4, np.float32),
    }
    with pytest.raises(Exception, match="not ascending numbers of blocks"):
        run("RestoreBlocks", inputs, ["x"], {"block": 1, "size": 8, "sizes": [2, 2, 8]})
