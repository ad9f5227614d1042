"""One bundle with open sizes against five bundles of fixed sizes: `python -m benchmarks.one_bundle_five_sizes`.

Prints a row for each size: the largest relative difference of outputs and state after three steps, and the peaks.
A second table explains the first step with Adam.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ttac
from benchmarks.train_small_nets import Detector
from ttac.methods import find
from ttac.reports.measure import measure
from ttac.sizes import format_size

SIZES = ((96, 96), (80, 96), (64, 48), (48, 80), (32, 32))
BATCH, STEPS = 8, 3
BOUND = 1e-5
"""Largest allowed relative difference."""


def network() -> nn.Module:
    """Return the trunk of the small detector with a pooled linear layer: images of any size."""
    torch.manual_seed(0)
    return nn.Sequential(Detector().body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def exported(folder: Path) -> Path:
    """Write the network with open height and width."""
    path = folder / "any-size.onnx"
    torch.onnx.export(
        network(), (torch.randn(2, 3, 96, 96),), str(path), dynamo=False, training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False, opset_version=17, input_names=["x"], output_names=["y"],
        dynamic_axes={"x": {0: "N", 2: "height", 3: "width"}, "y": {0: "N"}},
    )  # fmt: skip
    return path


def compiled(path: Path, method: str, name: str, optimizer: str = "sgd", **choices: Any) -> Path:
    """Compile beside the model."""
    folder = path.parent / f"{method}-{optimizer}-{name}.ttac"
    settings = {"optimizer": optimizer} if any(o.name == "optimizer" for o in find(method).options) else {}
    ttac.compile(path, output=folder, method=method, batch=BATCH, settings=settings, **choices)
    return folder


def peak(bundle: Path, x: np.ndarray) -> int:
    """Return the peak of a step on `x` in bytes."""
    file = bundle.parent / "x.npz"
    np.savez(file, x=x)
    found = measure(bundle, threads=1, samples=file)
    return int(found["peak"]) if found else 0


def difference(one: Path, other: Path, size: tuple[int, int]) -> float:
    """Return the largest difference of outputs and state after the steps, over the largest magnitude."""
    adapters, worst = [ttac.load(path, threads=1) for path in (one, other)], 0.0
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        x = random.standard_normal((BATCH, 3, *size), dtype=np.float32)
        found, expected = (adapter.step(x) for adapter in adapters)
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    states = [adapter._state.arrays() for adapter in adapters]
    for name, array in states[1].items():
        scale = max(float(np.abs(array).max()), 1e-3)
        worst = max(worst, float(np.abs(states[0][name].astype(float) - array).max()) / scale)
    return worst


def images(size: tuple[int, int]) -> np.ndarray:
    """Return random images of a size."""
    return np.random.default_rng(1).standard_normal((BATCH, 3, *size), dtype=np.float32)


def first_adam_step(one: Path, other: Path, size: tuple[int, int]) -> str:
    """Return a row on the parameter that the first step of two bundles with Adam sets farthest apart.

    The step is lr * g / (|g| + eps). The moment `m`, which is (1 - beta1) g then, gives both gradients g.
    """
    x, gradients, values, settings = images(size), [], [], {}
    for path in (one, other):
        adapter = ttac.load(path, threads=1)
        adapter.step(x)
        settings = adapter.bundle.manifest["method"]["settings"]
        state = {name: array.astype(float) for name, array in adapter._state.arrays().items()}
        moments = [array for name, array in state.items() if name.startswith("adam.m")]
        gradients.append(np.concatenate(moments) / (1 - settings["beta1"]))
        trained = [name.removesuffix(".scale") for name in state if name.endswith(".scale")]
        values.append(np.concatenate([state[f"{site}.{part}"] for site in trained for part in ("scale", "bias")]))
    steps = [settings["lr"] * g / (np.abs(g) + settings["eps"]) for g in gradients]
    apart, largest = values[1] - values[0], np.abs(gradients[1]).max()
    left = np.abs(apart - (steps[0] - steps[1])).max()
    rounding = np.abs(gradients[0] - gradients[1]).max() / largest
    at = np.abs(apart).argmax()
    row = f"{abs(apart[at]):.1e} | {rounding:.1e} | {abs(gradients[1][at]) / largest:.1e} | {left:.1e}"
    return f"| {size[0]}x{size[1]} | {row} |"


def explain_adam(path: Path) -> None:
    """Print how far the first step with Adam is apart, and by how much the gradients explain it."""
    print("\n| size | parameter apart | gradients apart | its gradient, of the largest | left unexplained |")
    print("|---|---:|---:|---:|---:|")
    whole = compiled(path, "tent", "open", "adam", max_shape="3x96x96")
    for size in SIZES:
        fixed = compiled(path, "tent", "x".join(map(str, size)), "adam", shape=(3, *size))
        print(first_adam_step(whole, fixed, size), flush=True)


def main() -> int:
    """Print the tables; the exit code is 1 if a difference is above the bound."""
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = exported(Path(folder))
        print("| method | size | difference | peak, one bundle | peak, fixed bundle |\n|---|---|---:|---:|---:|")
        for method in sys.argv[1:] or ["bn", "leantta", "tent"]:
            whole = compiled(path, method, "open", max_shape="3x96x96")
            for size in SIZES:
                fixed = compiled(path, method, "x".join(map(str, size)), shape=(3, *size))
                apart = difference(whole, fixed, size)
                peaks = " | ".join(format_size(peak(bundle, images(size))) for bundle in (whole, fixed))
                print(f"| `{method}` | {size[0]}x{size[1]} | {apart:.1e} | {peaks} |", flush=True)
                worst = max(worst, apart)
        explain_adam(path)
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
