"""The depthwise operators against NumPy in float64, and against PyTorch's autograd."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ttac_kernels", reason="needs ttac-kernels (make kernels)")

import onnxruntime

from tests.support.kernel_depthwise_case import (
    attributes_of,
    check_depthwise,
    check_input_gradient,
    convolved,
    input_gradient,
    outs_of,
)
from tests.support.kernel_map_case import PoolCase
from tests.support.kernel_session import blocked, plain, run, session_of

WINDOW = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "block": 16}
NORMS = {"act1": "clip", "low1": 0.0, "high1": 6.0, "act2": "clip", "low2": 0.0, "high2": 6.0}


def test_random_input_gradients_agree_with_numpy() -> None:
    for seed in range(100):
        check_input_gradient(seed)


@pytest.mark.parametrize("first", [0, 50])
def test_random_chains_agree_with_numpy(first: int) -> None:
    for seed in range(first, first + 50):
        check_depthwise(seed)


def test_a_chain_of_mobilenet_agrees_with_pytorch() -> None:
    torch = pytest.importorskip("torch")
    functional, random = torch.nn.functional, np.random.default_rng(0)
    arrays = {"x1": random.standard_normal((2, 32, 19, 22)), "w": random.standard_normal((32, 1, 3, 3))}
    arrays |= {name: random.uniform(0.5, 1.5, 32) for name in ("scale1", "bias1", "scale2", "bias2")}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    at = {name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in arrays.items()}

    def normed(x: torch.Tensor, number: int) -> torch.Tensor:
        y = functional.batch_norm(x, None, None, at[f"scale{number}"], at[f"bias{number}"], training=True)
        return torch.clamp(y, 0.0, 6.0)

    y2 = normed(functional.conv2d(normed(at["x1"], 1), at["w"], stride=2, padding=1, groups=32), 2)
    dy2 = torch.tensor(random.standard_normal(y2.shape))
    y2.backward(dy2)
    names = ["y2", "x2", "m1", "v1", "m2", "v2"]
    order = {name: array for name, array in arrays.items() if name not in ("scale2", "bias2")}
    order["x1"] = blocked(arrays["x1"], 16)
    inputs = {name: order[name] for name in ("x1", "scale1", "bias1", "w")}
    tail = {"cb": None, "scale2": arrays["scale2"], "bias2": arrays["bias2"]}
    made = run("DepthwiseForward", {**inputs, **tail}, names, {**WINDOW, **NORMS})
    assert np.allclose(plain(made["y2"], 16), y2.detach().numpy(), atol=1e-5)
    fed = {"dy2": blocked(dy2.numpy().astype(np.float32), 16), "x2": made["x2"], "x1": order["x1"], "w": order["w"]}
    for number in "12":
        fed |= {f"s{number}": arrays[f"scale{number}"], f"b{number}": arrays[f"bias{number}"]}
        fed |= {f"m{number}": made[f"m{number}"], f"v{number}": made[f"v{number}"]}
    grads = {"dx1": "x1", "dscale1": "scale1", "dbias1": "bias1", "dscale2": "scale2", "dbias2": "bias2"}
    back = run("DepthwiseBackward", fed, list(grads), {**WINDOW, **NORMS})
    for name, leaf in grads.items():
        found = plain(back[name], 16) if name == "dx1" else back[name]
        assert np.allclose(found, at[leaf].grad.numpy(), atol=2e-4), name


def chain_inputs(shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray | None], dict[str, np.ndarray]]:
    """Random inputs of both operators of a chain with stride 2; those of the backward but x2 and the moments."""
    random = np.random.default_rng(0)
    x1, w = (random.standard_normal(size).astype(np.float32) for size in (shape, (shape[1], 1, 3, 3)))
    vectors = [random.uniform(0.5, 1.5, shape[1]).astype(np.float32) for _ in range(4)]
    forward = {"x1": x1, "s1": vectors[0], "b1": vectors[1], "w": w, "cb": None, "s2": vectors[2], "b2": vectors[3]}
    half = tuple(-(-size // 2) for size in shape[2:])
    dy = random.standard_normal((*shape[:2], *half)).astype(np.float32)
    return forward, {"dy2": dy, "x1": x1, "w": w, **dict(zip(("s1", "b1", "s2", "b2"), vectors, strict=True))}


def backward_of(
    fed: dict[str, np.ndarray], made: dict[str, np.ndarray], names: list[str], threads: int = 2
) -> dict[str, np.ndarray]:
    values = {**fed, **made}
    order = ["dy2", "x2", "x1", "w", "s1", "b1", "m1", "v1", "s2", "b2", "m2", "v2"]
    return run("DepthwiseBackward", {name: values[name] for name in order}, names, {**WINDOW, **NORMS}, threads)


SMALL, LARGE = (2, 128, 9, 8), (3, 32, 120, 110)
"""Shapes of which a task has a block of channels, and a strip of rows."""
GRADIENTS = ["dx1", "dscale1", "dbias1", "dscale2", "dbias2"]


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_absent_outputs_of_a_chain_change_no_bit(shape: tuple[int, ...]) -> None:
    forward, fed = chain_inputs(shape)
    made = run("DepthwiseForward", forward, ["y2", "x2", "m1", "v1", "m2", "v2"], {**WINDOW, **NORMS})
    alone = run("DepthwiseForward", forward, ["y2", "", "", "", "m2", ""], {**WINDOW, **NORMS})
    assert all(np.array_equal(alone[name], made[name]) for name in ("y2", "m2"))
    back = backward_of(fed, made, GRADIENTS)
    vectors = backward_of(fed, made, ["", *GRADIENTS[1:]])
    assert all(np.array_equal(vectors[name], back[name]) for name in GRADIENTS[1:])


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...]) -> None:
    forward, fed = chain_inputs(shape)
    names = ["y2", "x2", "m1", "v1", "m2", "v2"]
    one, many = (run("DepthwiseForward", forward, names, {**WINDOW, **NORMS}, threads) for threads in (1, 3))
    assert all(np.array_equal(one[name], many[name]) for name in names)
    first, second = (backward_of(fed, one, GRADIENTS, threads) for threads in (1, 3))
    assert all(np.array_equal(first[name], second[name]) for name in GRADIENTS)


def test_weights_of_another_shape_are_refused() -> None:
    dy, w = np.zeros((1, 16, 4, 4), np.float32), np.zeros((16, 1, 3, 2), np.float32)
    with pytest.raises(Exception, match=r"input w: not of the shape \[C, 1, kh, kw\]"):
        run("DepthwiseInputGrad", {"dy": dy, "w": w}, ["dx"], {**WINDOW, "sizes": [8, 8]})


def run_over_nan(
    op_type: str, inputs: dict[str, np.ndarray | None], shape: tuple[int, ...], attributes: dict[str, object]
) -> np.ndarray:
    """The first output of the node, in memory that was NaN before."""
    session = session_of(op_type, inputs, ["made"], attributes)
    made = onnxruntime.OrtValue.ortvalue_from_numpy(np.full(shape, np.nan, np.float32))
    binding = session.io_binding()
    for name, array in inputs.items():
        if array is not None:
            binding.bind_cpu_input(name, array)
    binding.bind_ortvalue_output("made", made)
    session.run_with_iobinding(binding)
    return made.numpy().copy()


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_positions_that_no_tap_reaches_are_written(kernel: int, stride: int, padded: bool) -> None:
    pads = (kernel - 1, kernel // 2, kernel // 2, kernel - 1) if padded else (0, 0, 0, 0)
    case = PoolCase(
        seed=0,
        kind="plain",
        shape=(2, 16, 8, 9),
        block=8,
        kernel=(kernel,) * 2,
        strides=(stride,) * 2,
        pads=pads,
    )
    random = np.random.default_rng(0)
    w = random.standard_normal((16, 1, kernel, kernel)).astype(np.float32)
    outs = outs_of(case)
    dy = random.standard_normal((2, 16, *outs)).astype(np.float32)
    attributes = attributes_of(case)
    dx = run_over_nan(
        "DepthwiseInputGrad", {"dy": blocked(dy, 8), "w": w}, (2, 16, 8, 9), {**attributes, "sizes": [8, 9]}
    )
    assert np.allclose(plain(dx, 8), input_gradient(case, dy, w), atol=1e-4)
    x = random.standard_normal((2, 16, 8, 9)).astype(np.float32)
    one, zero = np.ones(16, np.float32), np.zeros(16, np.float32)
    inputs = {"x1": blocked(x, 8), "s1": one, "b1": zero, "w": w, "cb": one, "s2": one, "b2": zero}
    y2 = run_over_nan("DepthwiseForward", inputs, (2, 16, *outs), {**attributes, "act1": "none", "act2": "none"})
    y1 = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
    x2 = convolved(case, y1, w) + 1
    expected = (x2 - x2.mean((0, 2, 3), keepdims=True)) / np.sqrt(x2.var((0, 2, 3), keepdims=True) + 1e-5)
    assert np.allclose(plain(y2, 8), expected, atol=1e-4)
