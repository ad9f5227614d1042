"""Write `tests/golden/tent_*.safetensors`: five TENT steps in PyTorch on the shipped net and stream.

    python examples/make_golden.py [--out FOLDER]

Each file holds, as float32 rounded from a float64 run:
    logits              [5, 32, 10]  of every step, computed before its update
    entropy             [5]          the loss of every step, in nats
    source_logits       [5, 32, 10]  of the source net with stored statistics
    before/NAME, gradient/NAME, after/NAME   scale and shift before the first step, their gradients in this step, and
                                             after the last; NAME as in the ONNX file, e.g. layer1.0.bn1.weight

The metadata key `golden` holds JSON under one key, because safetensors orders keys at random.  It names the inputs (the
first rows of an array in `ttac/demo/fashion_stream.npz`, divided by 255), the optimiser, and the distance of the same
run in float32 from these numbers, which is the least tolerance of a test.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from plain_tent import as_input, entropy, net_from_onnx, norm_parameters, tent_step, use_batch_statistics
from safetensors.numpy import save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
MODEL, STREAM = "fashion_resnet_bn_unfolded.onnx", "fashion_stream.npz"
CORRUPTION, STEPS, BATCH = "gaussian_noise", 5, 32

Update = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[Update, dict[str, object]]] = {
    "tent_adam": (
        lambda tensors: torch.optim.Adam(tensors, lr=1e-3),
        {"optimizer": "adam", "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8},
    ),
    "tent_sgd": (
        lambda tensors: torch.optim.SGD(tensors, lr=5e-3, momentum=0.9),
        {"optimizer": "sgd", "lr": 5e-3, "momentum": 0.9, "nesterov": False},
    ),
    "tent_nesterov": (
        lambda tensors: torch.optim.SGD(tensors, lr=5e-3, momentum=0.9, nesterov=True),
        {"optimizer": "sgd", "lr": 5e-3, "momentum": 0.9, "nesterov": True},
    ),
}


def trajectory(demo: Path, update: Update, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of one golden file, computed in dtype."""
    with np.load(demo / STREAM) as stream:
        batches = torch.split(as_input(stream[CORRUPTION][: STEPS * BATCH]).to(dtype), BATCH)
    source = net_from_onnx(demo / MODEL).to(dtype)
    with torch.no_grad():
        result = {"source_logits": torch.stack([source(x) for x in batches])}
    net = use_batch_statistics(net_from_onnx(demo / MODEL).to(dtype))
    parameters = norm_parameters(net)
    result |= {f"before/{name}": value.detach().clone() for name, value in parameters.items()}
    first_loss = entropy(net(batches[0]))
    gradients = torch.autograd.grad(first_loss, list(parameters.values()))
    result |= {f"gradient/{name}": value for name, value in zip(parameters, gradients, strict=True)}
    optimizer = update(parameters.values())
    result["logits"] = torch.stack([tent_step(net, optimizer, x) for x in batches])
    result["entropy"] = torch.stack([entropy(logits) for logits in result["logits"]])
    return result | {f"after/{name}": value.detach() for name, value in parameters.items()}


def deviation(exact: dict[str, Tensor], rounded: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest absolute difference of the float32 run, per kind of tensor."""
    largest: dict[str, float] = {}
    for name, value in exact.items():
        kind = name.split("/")[0]
        largest[kind] = max(largest.get(kind, 0.0), float((value - rounded[name]).abs().max()))
    return largest


def write(name: str, demo: Path, out: Path) -> None:
    """Write one golden file."""
    update, settings = OPTIMIZERS[name]
    exact, rounded = (trajectory(demo, update, dtype) for dtype in (torch.float64, torch.float32))
    about = {
        "model": MODEL,
        "inputs": {"file": STREAM, "array": CORRUPTION, "batch": BATCH, "steps": STEPS, "divided_by": 255},
        "settings": settings,
        "float32_deviation": deviation(exact, rounded),
        "made_by": f"examples/make_golden.py, torch {torch.__version__}",
    }
    arrays = {key: np.ascontiguousarray(value.float().numpy()) for key, value in exact.items()}
    path = out / f"{name}.safetensors"
    save_file(arrays, path, {"golden": json.dumps(about)})
    path.chmod(0o644)
    print(f"{name}: largest float32 deviation {about['float32_deviation']}")


def main() -> None:
    """Write every golden file."""
    parser = argparse.ArgumentParser(description="Write the golden TENT trajectories of the tests.")
    parser.add_argument("--demo", type=Path, default=ROOT / "ttac" / "demo")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "golden")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in OPTIMIZERS:
        write(name, asked.demo, asked.out)


if __name__ == "__main__":
    main()
