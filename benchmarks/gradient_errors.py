"""Errors of the gradients of each form and of PyTorch in float32: `python -m benchmarks.gradient_errors NETWORK ...`.

The gradient of `tent` by all norms, on random samples and with random weights, against PyTorch in float64.  A figure is
the length of the difference by the length of the gradient.  Bundles come from the folder of `benchmarks.forms`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from benchmarks.forms import FORMS, bundle_of
from benchmarks.networks import NETWORKS, build
from benchmarks.profile import form_of, runs_of
from ttac.passes.graph.execute import Executable
from ttac.reports.measure import random_samples
from ttac.runtime.forms import form_weights
from ttac.runtime.kernel_library import kernel_library

Arrays = Mapping[str, np.ndarray]


def pytorch_gradients(name: str, x: np.ndarray, dtype: torch.dtype) -> Arrays:
    """Return the gradients of `tent`, `<norm>.scale` and `<norm>.bias`, with the statistics of the batch."""
    net = build(name)[0].to(dtype)
    norms = {title: m for title, m in net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    net.eval()
    for norm in norms.values():
        norm.train()
    logits = net(torch.from_numpy(x).to(dtype))
    (-(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()).backward()
    found: dict[str, np.ndarray] = {}
    for title, norm in norms.items():
        assert norm.weight.grad is not None and norm.bias.grad is not None
        found |= {f"{title}.scale": norm.weight.grad.double().numpy(), f"{title}.bias": norm.bias.grad.double().numpy()}
    return found


def form_gradients(bundle: Path, form: str, x: np.ndarray) -> Arrays:
    """Return the gradients that the graphs of a form compute; raises SystemExit if no such form runs here."""
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    spec = form_of(bundle, manifest, form)
    values: dict[str, np.ndarray] = {manifest["inputs"][0]["name"]: x}
    values |= load_file(bundle / "state.safetensors") | load_file(bundle / "weights.safetensors")
    library = None
    if spec is not None:
        values |= form_weights(values, spec, bundle)
        library = kernel_library(spec.kernels).path if spec.kernels else None
    for graph in runs_of(manifest["programs"]["step"]):
        file = spec.graphs.get(graph) if spec is not None else None
        values |= Executable(bundle / (file or f"{graph}.onnx"), library=library)(values)
    return {name.removesuffix(".grad"): array for name, array in values.items() if name.endswith(".grad")}


def error(found: Arrays, expected: Arrays) -> float:
    """Return the length of the difference by the length of the expected gradient."""
    names = sorted(found.keys() & expected.keys())
    assert len(names) == len(expected), "the form and PyTorch name other norms"
    apart = sum(float(np.square(found[name].astype(np.float64) - expected[name]).sum()) for name in names)
    return float(np.sqrt(apart / sum(float(np.square(expected[name]).sum()) for name in names)))


def main() -> None:
    """Print one row of errors for each network on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradient_errors", description=__doc__)
    parser.add_argument("networks", nargs="+", choices=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("build/forms"))
    options = parser.parse_args()
    print("| network | PyTorch float32 | " + " | ".join(FORMS) + " |\n|---|---:|" + "---:|" * len(FORMS))
    for name in options.networks:
        side, bundle = NETWORKS[name][1], bundle_of(name, options.batch, options.folder)
        x = random_samples(options.batch, (3, side, side))
        exact = pytorch_gradients(name, x, torch.float64)
        errors = [error(pytorch_gradients(name, x, torch.float32), exact)]
        errors += [error(form_gradients(bundle, form, x), exact) for form in FORMS]
        print(f"| {name} | " + " | ".join(f"{each:.1e}" for each in errors) + " |", flush=True)


if __name__ == "__main__":
    main()
