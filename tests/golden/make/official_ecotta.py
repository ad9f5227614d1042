"""Write `tests/golden/official_ecotta.safetensors`: steps and warm-up of a published EcoTTA, in float64.

    python -m tests.golden.make.official_ecotta CHECKOUTS

CHECKOUTS is as for `official_methods`, with Lily-Le/EcoTTA 85c1122.  The classes of its parts wrap the blocks of the
network of `tests/golden/surgeon_batch.onnx`.  The loops are those of its script: `code` has two steps for each batch, and
`joint` one step on both losses.  The file holds `RUN/logits` [6, 32, 6] and `RUN/after/NAME`, by ttac's names.
"""

from __future__ import annotations

import ast
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from benchmarks.pytorch_peers import entropy
from tests.golden.make.surgeon_nets import built
from tests.support.official_batch_norms import stream
from tests.support.official_ecotta import GOLDEN, SETTINGS, WARMUP, calibration, labels
from tests.support.surgeon_case import CLASSES
from ttac.methods.ecotta.meta_networks import first_filters
from ttac.methods.ecotta.warmup import fall

COMMIT = "Lily-Le/EcoTTA 85c1122"
CLASSES_OF_FILE = ("conv_block", "build_meta_block", "one_part_of_networks")
NAMES = {
    "conv": "conv_block.conv.weight", "conv.norm.scale": "conv_block.bn.weight", "conv.norm.bias": "conv_block.bn.bias",
    "norm.scale": "meta_bn.weight", "norm.bias": "meta_bn.bias",
}  # fmt: skip
"""Name in ttac -> name in the published part."""


def published(checkouts: Path) -> dict[str, Any]:
    """Return the classes of the published file, which loads a model when it is imported."""
    text = (checkouts / "EcoTTA" / "ecotta_models" / "wideresnet40.py").read_text(encoding="utf-8")
    chosen = [n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name in CLASSES_OF_FILE]
    names: dict[str, Any] = {"nn": nn, "F": nn.functional, "Module": nn.Module}
    exec(compile(ast.Module(chosen, []), "wideresnet40.py", "exec"), names)
    return names


def attached(checkouts: Path, seed: int) -> tuple[nn.Module, list[Any]]:
    """Return the network with published parts around its two blocks, and the parts."""
    torch.set_default_dtype(torch.float32)
    net, made, random = built("batch").double().requires_grad_(False), published(checkouts), np.random.RandomState(seed)
    torch.set_default_dtype(torch.float64)
    parts = []
    for name in ("3", "4"):
        block = net.get_submodule(name)
        first = next(m for m in block.modules() if isinstance(m, nn.Conv2d))
        before, after, side = first.in_channels, first.out_channels, first.stride[0]
        meta = made["build_meta_block"]((before, after), (side, 1))
        with torch.no_grad():
            meta.conv_block.conv.weight.copy_(torch.from_numpy(first_filters(before, after, random)))
        part = made["one_part_of_networks"](block, meta)
        setattr(net, name, part)
        parts.append(part)
    return net.train(), parts


def optimizer_of(parts: list[Any], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for part in parts for p in part.meta_part.parameters()], lr, 0.9)


def after(parts: list[Any]) -> dict[str, np.ndarray]:
    return {
        f"after/meta.{k}.{name}": part.meta_part.get_parameter(other).detach().numpy().copy()
        for k, part in enumerate(parts)
        for name, other in NAMES.items()
    }


def regularise(net: nn.Module, parts: list[Any], x: Tensor, weight: float) -> None:
    """The first half of a published step: the gradients of the distances."""
    for part in parts:
        part.cal_mseloss = True
    net(x)
    for part in parts:
        (part.btsloss * weight).backward()
        part.cal_mseloss = False


def adapted(checkouts: Path, run: str) -> dict[str, np.ndarray]:
    settings = SETTINGS[run]
    net, parts = attached(checkouts, int(settings["seed"]))
    optimizer = optimizer_of(parts, settings["lr"])
    logits, selected = [], []
    for x in torch.from_numpy(stream()).double():
        optimizer.zero_grad()
        regularise(net, parts, x, settings["nearness"])
        if run == "code":
            optimizer.step()
            optimizer.zero_grad()
        scores = net(x)
        each = entropy(scores)
        kept = each < settings["margin"] * math.log(CLASSES)
        each[kept].mean().backward()
        optimizer.step()
        logits.append(scores.detach().numpy())
        selected.append(int(kept.sum()))
    return {"logits": np.stack(logits), "selected": np.array(selected), **after(parts)}


def warmed_up(checkouts: Path) -> dict[str, np.ndarray]:
    """The published warm-up without its distortions, and with the order of ttac."""
    net, parts = attached(checkouts, int(WARMUP["seed"]))
    optimizer = optimizer_of(parts, WARMUP["warmup_lr"])
    x, y = torch.from_numpy(calibration()).double(), torch.from_numpy(labels())
    for epoch in range(int(WARMUP["warmup_epochs"])):
        order = np.random.RandomState([int(WARMUP["seed"]), epoch]).permutation(len(y))
        steps = len(y) // 64
        for step in range(steps):
            chosen = order[step * 64 : (step + 1) * 64]
            rate = (step + 1) / steps if epoch == 0 else fall(epoch + 1)
            optimizer.param_groups[0]["lr"] = WARMUP["warmup_lr"] * rate
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return after(parts)


def main() -> None:
    torch.set_num_threads(1)
    checkouts = Path(sys.argv[1])
    runs = {**{run: adapted(checkouts, run) for run in SETTINGS}, "warmup": warmed_up(checkouts)}
    found = {
        f"{run}/{key}": np.ascontiguousarray(value, np.float32)
        for run, made in runs.items()
        for key, value in made.items()
    }
    save_file(found, GOLDEN, {"made_by": f"{Path(__file__).name}, torch {torch.__version__}", "EcoTTA": COMMIT})


if __name__ == "__main__":
    main()
