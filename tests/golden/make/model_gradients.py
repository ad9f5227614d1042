"""Write `tests/models/*.onnx` and `tests/golden/models.safetensors`: small nets and their TENT gradients from PyTorch.

    python -m tests.golden.make.model_gradients [NAME ...]

The golden file holds for each net, computed and stored in float64: `NAME/logits` [8, 7] with batch statistics,
`NAME/source_logits` with stored statistics, `NAME/entropy`, the mean entropy of `NAME/logits`, and its gradient
`NAME/gradient/PARAMETER` for scale and shift of every norm, with torch's names (`0.branch.1.weight`).  The metadata, JSON
under the one key `golden`, hold the seed of the weights, the exporter of the file, and the distance of torch's float32
gradients from these.

The search for a seed leaves no activation so close to a kink that float32 can put it on the other side; right and wrong
gradients are equal there.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from benchmarks.pytorch_peers import entropy, use_batch_statistics
from tests.support.small_networks import NETWORKS
from tests.support.whole_models import BATCH, samples
from ttac.passes.graph.layer_names import SCOPES

HERE = Path(__file__).resolve().parents[2]
GOLDEN = HERE / "golden" / "models.safetensors"
CALIBRATION = 64
STEADY = 2e-5
"""Largest change of the gradients, relative to their length, in float32 or when the input moves by `NUDGE`."""
NUDGE = 3e-6
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
DYNAMO = frozenset({"resnet", "mobilenet_v3", "densenet", "shufflenet", "signal", "transformer"})
"""Nets written by the exporter that follows the code; the tracing exporter writes the others."""

Numbers = dict[str, np.ndarray]


def build(name: str, seed: int) -> nn.Module:
    """Return the net with weights of `seed`, norms like trained ones, and logits with entropies well below ln C."""
    torch.manual_seed(seed)
    maker, shape = NETWORKS[name]
    net = maker()
    images = torch.from_numpy(samples(shape, CALIBRATION, seed=1))
    for norm in [module for module in net.modules() if isinstance(module, NORMS)]:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
        last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        last.weight *= 2.0 / net(images).std()
    return net.eval()


def norm_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return scale and shift of every norm by their names in the net."""
    norms = {name: module for name, module in net.named_modules() if isinstance(module, NORMS)}
    return {f"{name}.{role}": value for name, norm in norms.items() for role, value in norm.named_parameters()}


def numbers(net: nn.Module, x: Tensor) -> Numbers:
    """Return the golden numbers of a net; its norms lose their stored statistics."""
    with torch.no_grad():
        source = net(x)
    parameters = norm_parameters(use_batch_statistics(net))
    logits = net(x)
    loss = entropy(logits).mean()
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    found = {"source_logits": source, "logits": logits, "entropy": loss}
    found |= {f"gradient/{name}": gradient for name, gradient in zip(parameters, gradients, strict=True)}
    return {key: value.detach().double().numpy() for key, value in found.items()}


def distance(found: Numbers, expected: Numbers) -> float:
    """Return the distance between all gradients as one vector, relative to the length of the expected vector."""
    names = [name for name in expected if name.startswith("gradient/")]
    apart = sum(float(((found[name] - expected[name]) ** 2).sum()) for name in names)
    return float(np.sqrt(apart / sum(float((expected[name] ** 2).sum()) for name in names)))


def steady(name: str, seed: int) -> tuple[Numbers, float, float]:
    """Return the numbers, their distance from float32, and their change when the input moves."""
    x = torch.from_numpy(samples(NETWORKS[name][1], BATCH))
    exact = numbers(build(name, seed).double(), x.double())
    nudges = [torch.from_numpy(samples(NETWORKS[name][1], BATCH, seed=2 + i)).double() * NUDGE for i in range(3)]
    moved = max(distance(numbers(build(name, seed).double(), x.double() + nudge), exact) for nudge in nudges)
    return exact, distance(numbers(build(name, seed), x), exact), moved


def export(name: str, net: nn.Module, path: Path) -> None:
    """Write the net with unfolded norms and a symbolic batch."""
    x = torch.from_numpy(samples(NETWORKS[name][1], 2))
    names = {"input_names": ["x"], "output_names": ["logits"]}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if name in DYNAMO:
            free = {"x": {0: torch.export.Dim("batch", min=1, max=1024)}}
            program = torch.onnx.export(net, (x,), dynamo=True, optimize=False, dynamic_shapes=(free["x"],), **names)
            assert program is not None
            program.save(str(path))
        else:
            training = torch.onnx.TrainingMode.PRESERVE
            axes = {"x": {0: "batch"}, "logits": {0: "batch"}}
            torch.onnx.export(
                net, (x,), str(path), dynamo=False, training=training, do_constant_folding=False, dynamic_axes=axes,
                opset_version=17, **names,
            )  # fmt: skip
    model = onnx.load(path)
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        kept = [entry for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


def told(name: str) -> dict[str, Any]:
    """Return the metadata of a net in the golden file."""
    with safe_open(GOLDEN, "np") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["golden"])[name]
    return facts


def make(name: str) -> tuple[Numbers, dict[str, object]]:
    """Search a seed, write the model, and return the golden numbers and their metadata."""
    for seed in range(200):
        exact, single, moved = steady(name, seed)
        if max(single, moved) < STEADY:
            break
    else:
        raise SystemExit(f"{name}: no seed gives steady gradients")
    path = HERE / "models" / f"{name}.onnx"
    path.parent.mkdir(exist_ok=True)
    export(name, build(name, seed), path)
    facts = {"seed": seed, "exporter": "dynamo" if name in DYNAMO else "legacy", "float32": single, "nudged": moved}
    print(f"{name}: {path.stat().st_size} bytes, entropy {float(exact['entropy']):.2f}, {facts}")
    return exact, facts


def main() -> None:
    torch.set_num_threads(1)
    asked = sys.argv[1:] or list(NETWORKS)
    tensors: Numbers = {}
    facts: dict[str, object] = {}
    if GOLDEN.exists() and sys.argv[1:]:
        with safe_open(GOLDEN, "np") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys() if key.split("/")[0] not in asked}
            facts = json.loads(file.metadata()["golden"])
    for name in asked:
        exact, facts[name] = make(name)
        tensors |= {f"{name}/{key}": np.ascontiguousarray(value) for key, value in exact.items()}
    facts["made_by"] = f"tests/golden/make/model_gradients.py, torch {torch.__version__}"
    save_file(tensors, GOLDEN, {"golden": json.dumps(facts)})


if __name__ == "__main__":
    main()
