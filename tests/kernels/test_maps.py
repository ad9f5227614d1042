"""MaxPoolForward, MaxPoolBackward and Interleave against NumPy and PyTorch's autograd."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ttac_kernels", reason="needs ttac-kernels (make kernels)")

from tests.support.kernel_map_case import check_interleave, check_pool, pool_case
from tests.support.kernel_session import blocked, plain, run

WINDOW = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "block": 16}


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_random_pools_agree_with_numpy(first: int) -> None:
    for seed in range(first, first + 50):
        check_pool(pool_case(seed))


def test_random_phases_agree_with_numpy() -> None:
    for seed in range(100):
        check_interleave(seed)


def test_the_pool_of_a_network_agrees_with_pytorch() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 32, 21, 18)).astype(np.float32)
    at = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.max_pool2d(at, 3, 2, 1)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    y.backward(dy)
    found = run("MaxPoolForward", {"x": blocked(x, 16)}, ["y", "taps"], WINDOW)
    assert np.array_equal(plain(found["y"], 16), y.detach().numpy())
    inputs = {"dy": blocked(dy.numpy(), 16), "taps": found["taps"]}
    back = run("MaxPoolBackward", inputs, ["dx"], {**WINDOW, "sizes": [21, 18]})
    assert np.allclose(plain(back["dx"], 16), at.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pads": [3, 0, 0, 0]}, "a window lies in the padding"),
        ({"kernel_shape": [17, 17]}, "more taps than a byte can number"),
        ({"kernel_shape": [9, 9]}, "smaller than the window"),
        ({"strides": [0, 1]}, "below one"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(changed: dict[str, list[int]], message: str) -> None:
    x = np.zeros((1, 16, 4, 4), np.float32)
    with pytest.raises(Exception, match=message):
        run("MaxPoolForward", {"x": x}, ["y", "taps"], {**WINDOW, **changed})


def test_phases_of_other_sizes_are_refused() -> None:
    phase = np.zeros((1, 16, 4, 4), np.float32)
    with pytest.raises(Exception, match="does not fit the sizes of x"):
        run("Interleave", {"p00": phase}, ["x"], {"block": 16, "sizes": [9, 8]})
