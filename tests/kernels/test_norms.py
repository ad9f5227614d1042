"""NormForward and NormBackward against NumPy in float64, and against PyTorch's autograd."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ttac_kernels", reason="needs ttac-kernels (make kernels)")

from tests.support.kernel_norm_case import check_norm, norm_case
from tests.support.kernel_session import blocked, plain, run

ROOT = Path(__file__).resolve().parents[2]
STATISTICS = ("mean", "variance")


def inputs_of(shape: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    names = ("x", "residual", "dy")
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name in names}
    channels = {name: random.uniform(0.5, 1.5, shape[1]).astype(np.float32) for name in ("scale", "bias")}
    return {**arrays, **channels}


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_random_cases_agree_with_numpy_in_float64(first: int) -> None:
    for seed in range(first, first + 50):
        check_norm(norm_case(seed))


@pytest.mark.parametrize("instructions", ["baseline", "avx2"])
def test_slower_instructions_give_the_same_numbers(instructions: str) -> None:
    environment = {**os.environ, "TTAC_KERNELS_INSTRUCTIONS": instructions}
    read = "import ctypes, ttac_kernels; library = ctypes.CDLL(str(ttac_kernels.library_path())); "
    read += "name = library.ttac_kernels_instructions; name.restype = ctypes.c_char_p; print(name().decode())"
    chosen = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True, check=True)
    if chosen.stdout.strip() != instructions:
        pytest.skip(f"the processor has no {instructions}")
    command = [sys.executable, "-m", "benchmarks.kernel_fuzz", "--shapes", "100", "--operators", "norm"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("shape", [(8, 32, 70, 70), (2, 256, 7, 7), (8, 16, 20, 20)])
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...]) -> None:
    arrays, attributes = inputs_of(shape), {"block": 16, "act": "relu"}
    taken = {name: arrays[name] for name in ("x", "scale", "bias")}
    one, two = (run("NormForward", taken, ["y", *STATISTICS], attributes, threads) for threads in (1, 2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    names = ("dy", "x", "scale", "bias", *STATISTICS)
    fed = {name: {**arrays, **one}[name] for name in names}
    back = [run("NormBackward", fed, ["dx", "dscale", "dbias"], attributes, threads) for threads in (1, 2)]
    assert all(np.array_equal(back[0][name], back[1][name]) for name in back[0])


@pytest.mark.parametrize("act", ["none", "relu", "clip", "silu", "hardswish", "gelu"])
def test_gradients_agree_with_the_autograd_of_pytorch(act: str) -> None:
    torch = pytest.importorskip("torch")
    functions = {
        "none": lambda u: u,
        "relu": torch.relu,
        "clip": lambda u: torch.clamp(u, 0.0, 6.0),
        "silu": torch.nn.functional.silu,
        "hardswish": torch.nn.functional.hardswish,
        "gelu": torch.nn.functional.gelu,
    }
    arrays = inputs_of((3, 16, 9, 5))
    at = {name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in arrays.items()}
    normed = torch.nn.functional.batch_norm(at["x"], None, None, at["scale"], at["bias"], training=True, eps=1e-3)
    y = functions[act](normed + at["residual"])
    y.backward(at["dy"].detach())
    order = {name: blocked(arrays[name], 8) for name in ("x", "residual", "dy")}
    attributes = {"block": 8, "act": act, "low": 0.0, "high": 6.0, "epsilon": 1e-3}
    taken = {"x": order["x"], "scale": arrays["scale"], "bias": arrays["bias"], "residual": order["residual"]}
    found = run("NormForward", taken, ["y", *STATISTICS], attributes)
    assert np.allclose(plain(found["y"], 8), y.detach().numpy(), atol=2e-6)
    names = ("dy", "x", "scale", "bias", *STATISTICS, "mask", "residual")
    fed = {name: {**arrays, **order, **found}.get(name) for name in names}
    back = run("NormBackward", fed, ["dx", "dscale", "dbias", "du"], attributes)
    expected = {"dx": "x", "dscale": "scale", "dbias": "bias", "du": "residual"}
    for name, leaf in expected.items():
        array = plain(back[name], 8) if name in ("dx", "du") else back[name]
        assert np.allclose(array, at[leaf].grad.numpy(), atol=2e-5), name
