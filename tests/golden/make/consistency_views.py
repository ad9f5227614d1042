"""Write `tests/golden/consistency.safetensors`: distortions by torchvision, and SURGEON with CR in PyTorch, float64.

    python -m tests.golden.make.consistency_views

The distortions are the steps of CoTTA in its order, each alone: jitter, padding, affine transform, blur, crop, mirror,
noise.  The loss of both views is one value, and is differentiated as one.  Needs torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, library, nn

from benchmarks.pytorch_peers import entropy
from tests.golden.make.surgeon_nets import built, norms_of, ratios
from tests.support.consistency_case import (
    BLACK,
    GOLDEN,
    NEUTRAL,
    SETTINGS,
    STAGES,
    WHITE,
    drawn,
    initial,
    inputs,
    normals,
    numbers,
    pictures,
)
from tests.support.surgeon_case import CLASSES

try:
    import torchvision.transforms.functional as picture
except RuntimeError:
    # A wheel of torchvision beside a CPU build of torch fails to import: two names are missing, and nothing calls them.
    missing = library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        missing.define(f"{name}(Tensor x) -> Tensor")
    import torchvision.transforms.functional as picture

NOISE = 0.005


def distorted(x: Tensor, by: Mapping[str, float], noise: Tensor | float = 0.0) -> Tensor:
    """Return `x` [n, C, H, W] from 0 to 1 with the distortions of CoTTA."""
    height, width = x.shape[2:]
    x = picture.adjust_brightness(x.clamp(0, 1), by["brightness"])
    x = picture.adjust_contrast(x, by["contrast"])
    x = picture.adjust_saturation(x, by["saturation"])
    x = picture.adjust_hue(x, by["hue"])
    x = picture.adjust_gamma(x.clamp(1e-8, 1), by["gamma"])
    x = picture.pad(x, [width // 2, height // 2], padding_mode="edge")
    moved = [round(by["right"] * width), round(by["down"] * height)]
    bilinear = picture.InterpolationMode.BILINEAR
    x = picture.affine(x, by["angle"], moved, by["scale"], [0.0, 0.0], bilinear)
    x = picture.center_crop(picture.gaussian_blur(x, [5, 5], [by["blur"], by["blur"]]), [height, width])
    x = picture.hflip(x) if by["mirror"] < 0 else x
    return (x + NOISE * noise).clamp(0, 1)


def stages() -> Iterator[tuple[str, np.ndarray]]:
    for channels in (1, 3):
        for name, changed in STAGES.items():
            x = torch.from_numpy(pictures(channels)).double()
            yield f"stages/{name}/{channels}", distorted(x, {**NEUTRAL, **changed}).numpy()


def loss_of(net: nn.Module, x: Tensor, other: Tensor, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the logits of `x`, and the loss of both views."""
    logits, turned = net(x), net(other)
    entropies = entropy(logits)
    loss = entropies.mean()
    if settings.get("css"):
        bound = float(settings["margin"]) * math.log(CLASSES)
        certain = entropies < bound
        assert 0 < certain.sum() < len(x)
        loss = (entropies * torch.exp(bound - entropies.detach()))[certain].mean()
    apart = -(logits.softmax(1) * turned.log_softmax(1)).sum(1).mean()
    return logits.detach(), loss + float(settings.get("cr_weight", 0.01 * CLASSES)) * apart


def trajectory(run: str) -> Iterator[tuple[str, np.ndarray]]:
    net, settings = built("batch").double(), SETTINGS[run]
    norms = norms_of(net)
    tensors = [tensor for each in norms.values() for tensor in (each.weight, each.bias)]
    lr = float(settings["lr"])
    optimizer: Any = (
        torch.optim.SGD(tensors, lr, 0.9) if settings["optimizer"] == "sgd" else torch.optim.Adam(tensors, lr)
    )
    stream = numbers(initial(int(settings.get("seed", 0))))
    black, white = (torch.tensor(bound, dtype=torch.float64).view(3, 1, 1) for bound in (BLACK, WHITE))
    logits = []
    for batch in inputs():
        x = torch.from_numpy(batch).double()
        by = drawn(stream)
        noise = torch.from_numpy(normals(stream, batch.shape))
        other = black + distorted((x - black) / (white - black), by, noise) * (white - black)
        ratios(net, norms, x[: int(settings["probe_samples"])], 1.0)
        optimizer.zero_grad()
        found, loss = loss_of(net, x, other, settings)
        loss.backward()
        optimizer.step()
        logits.append(found.numpy())
    yield f"{run}/logits", np.stack(logits)
    for name, each in norms.items():
        yield f"{run}/after/{name}.scale", each.weight.detach().numpy()
        yield f"{run}/after/{name}.bias", each.bias.detach().numpy()


def main() -> None:
    found = dict(stages()) | {name: value for run in SETTINGS for name, value in trajectory(run)}
    assert all(np.isfinite(value).all() for value in found.values())
    made = {"made_by": f"tests/golden/make/consistency_views.py, torch {torch.__version__}"}
    save_file({name: np.ascontiguousarray(v, np.float32) for name, v in found.items()}, GOLDEN, made)


if __name__ == "__main__":
    main()
