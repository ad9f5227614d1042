"""A run of the published code of ROID, with ttac's distortions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import torchvision.transforms.functional as picture
from torch import Tensor, nn

from benchmarks.pytorch_peers import norm_parameters
from tests.support.consistency_case import drawn, numbers
from ttac.passes.operators.random_numbers import seeded

Arrays = dict[str, np.ndarray]
COMMIT = "mariodoebler/test-time-adaptation 8b2ed63"
UNUSED = ("models", "models.model", "augmentations", "augmentations.transforms_cotta", "utils.registry")
"""Modules that the published file imports and this run never calls."""


def distorted(x: Tensor, by: Mapping[str, float]) -> Tensor:
    """Return `x` [n, C, H, W] from 0 to 1 with the light distortions of the published code."""
    height, width = x.shape[2:]
    x = picture.adjust_brightness(x.clamp(0, 1), by["brightness"])
    x = picture.adjust_contrast(x, by["contrast"])
    x = picture.adjust_saturation(x, by["saturation"])
    x = picture.adjust_hue(x, by["hue"])
    x = picture.adjust_gamma(x.clamp(1e-8, 1), by["gamma"])
    x = picture.pad(x, [width // 2, height // 2], padding_mode="reflect")
    moved = [round(by["right"] * width), round(by["down"] * height)]
    x = picture.affine(x, by["angle"], moved, by["scale"], [0.0, 0.0], picture.InterpolationMode.BILINEAR)
    x = picture.center_crop(x, [height, width])
    return (picture.hflip(x) if by["mirror"] < 0 else x).clamp(0, 1)


class Views:
    """The light distortions of one batch after the other, with ttac's numbers."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.state = [int(word) for word in seeded(int(settings["seed"]))]
        self.black, self.white = float(settings["black"]), float(settings["white"])

    def __call__(self, x: Tensor) -> Tensor:
        unit = (x - self.black) / (self.white - self.black)
        return self.black + distorted(unit, drawn(numbers(self.state))) * (self.white - self.black)


def published(checkouts: Path) -> Any:
    """Return the module `methods.roid`, with stand-ins for the modules that it does not call."""
    folder = str(checkouts / "test-time-adaptation" / "classification")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("methods", "utils")]:
        del sys.modules[name]
    for name in UNUSED:
        sys.modules[name] = MagicMock(__path__=[])
    sys.modules["methods"] = package = ModuleType("methods")
    package.__path__ = [f"{folder}/methods"]  # the package itself imports all methods of the repository
    sys.modules["utils.registry"].ADAPTATION_REGISTRY.register = lambda: lambda kind: kind
    sys.path.insert(0, folder)
    try:
        return __import__("methods.roid", fromlist=["ROID"])
    finally:
        sys.path.remove(folder)


def roid(checkouts: Path, settings: Mapping[str, Any]) -> Callable[[nn.Module, Tensor], Arrays]:
    """Return a run of the published code on batches [steps, N, C, H, W]."""

    def steps(net: nn.Module, x: Tensor) -> Arrays:
        module, classes = published(checkouts), net(x[0]).shape[1]
        trained = norm_parameters(net)
        for value in trained.values():
            value.requires_grad_()
        adapter = module.ROID.__new__(module.ROID)
        nn.Module.__init__(adapter)
        adapter.model, adapter.src_model, adapter.device, adapter.mixed_precision = net, deepcopy(net), "cpu", False
        adapter.optimizer = torch.optim.SGD(trained.values(), settings["lr"], 0.9)
        adapter.use_weighting = adapter.use_prior_correction = adapter.use_consistency = True
        adapter.momentum_src, adapter.momentum_probs, adapter.temperature = 0.99, 0.9, 1 / 3
        adapter.batch_size, adapter.num_classes = x.shape[1], classes
        adapter.class_probs_ema = torch.ones(classes) / classes
        adapter.tta_transform = Views(settings)
        adapter.slr, adapter.softmax_entropy = module.SoftLikelihoodRatio(), module.Entropy()
        adapter.symmetric_cross_entropy = module.SymmetricCrossEntropy()
        logits = np.stack([adapter.forward_and_adapt([batch]).detach().numpy() for batch in x])
        after = {f"after/{name}": value.detach().numpy() for name, value in trained.items()}
        return {"logits": logits, "after/classes.average": adapter.class_probs_ema.numpy(), **after}

    return steps
