"""Runs of the published code of CoTTA, with ttac's distortions and random numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.pytorch_peers import norm_parameters
from tests.golden.make.consistency_views import distorted
from tests.support.consistency_case import drawn, normals, numbers
from tests.support.official import SETTINGS
from ttac.passes.operators.random_numbers import seeded

Arrays = dict[str, np.ndarray]
COMMIT = "qinenergy/cotta c212a20"


class Restored:
    """`torch` for the published file: `rand` gives ttac's numbers, for the norms first and then the other tensors."""

    def __init__(self, net: nn.Module, seed: int) -> None:
        self.stream = numbers([int(word) for word in seeded(seed + 1)])
        self.net, self.waiting = net, iter(())
        self.order = [name for name, value in net.named_parameters() if value.requires_grad]

    def begin(self) -> None:
        """Draw the numbers of one step."""
        norms = [name for name in norm_parameters(self.net) if name in self.order]
        shapes = {name: value.shape for name, value in self.net.named_parameters()}
        found = {name: self._table(shapes[name]) for name in [*norms, *(n for n in self.order if n not in norms)]}
        self.waiting: Iterator[Tensor] = iter([found[name] for name in self.order])

    def _table(self, shape: torch.Size) -> Tensor:
        return torch.tensor([next(self.stream) for _ in range(shape.numel())]).reshape(shape)

    def rand(self, shape: torch.Size) -> Tensor:
        """Return the numbers of the next tensor in the order of the published loop."""
        table = next(self.waiting)
        assert table.shape == shape
        return table

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class Views:
    """The published distortions of one batch after the other, with ttac's numbers."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.state = [int(word) for word in seeded(int(settings.get("seed", 0)))]
        self.black, self.white = float(settings["black"]), float(settings["white"])

    def __call__(self, x: Tensor) -> Tensor:
        stream = numbers(self.state)
        by, noise = drawn(stream), torch.from_numpy(normals(stream, tuple(x.shape)))
        unit = (x - self.black) / (self.white - self.black)
        return self.black + distorted(unit, by, noise) * (self.white - self.black)


def published(checkouts: Path, run: str) -> Any:
    """Return the module of the form for CIFAR, or of the form for ImageNet."""
    folder = checkouts / "cotta" / ("imagenet" if run == "cotta-imagenet" else "cifar")
    sys.modules.pop("cotta", None)
    sys.modules.pop("my_transforms", None)
    sys.path.insert(0, str(folder))
    try:
        return __import__("cotta")
    finally:
        sys.path.remove(str(folder))


def cotta(checkouts: Path, run: str) -> Callable[[nn.Module, Tensor], Arrays]:
    """The run `cotta`, `cotta-all` or `cotta-imagenet` of `tests.support.official.SETTINGS`.

    All weights train in the convolutional network only: a transformer has tensors that are no weight of a layer.
    """

    def steps(net: nn.Module, x: Tensor) -> Arrays:
        if run == "cotta-all" and not any(
            isinstance(module, nn.Conv2d) and module.padding[0] for module in net.modules()
        ):
            return {}
        settings, module = SETTINGS[run], published(checkouts, run)
        torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment, misc]
        trained = dict(net.named_parameters()) if run == "cotta-all" else norm_parameters(net)
        for value in trained.values():
            value.requires_grad_()
        module.torch, views = Restored(net, int(settings.get("seed", 0))), Views(settings)
        module.get_tta_transforms = lambda: views
        nesterov = bool(settings.get("nesterov", False))
        optimizer = torch.optim.SGD(trained.values(), settings["lr"], 0.9, nesterov=nesterov)
        choices = {
            "mt_alpha": settings["teacher_decay"], "rst_m": settings["restored"], "ap": settings["confidence"] or 0.92,
        } if run != "cotta-imagenet" else {}  # fmt: skip
        adapter = module.CoTTA(net, optimizer, **choices)
        logits, unsure = [], []
        for batch in x:
            module.torch.begin()
            certain = adapter.model_anchor(batch).detach().softmax(1).amax(1).mean()
            before = list(views.state)
            logits.append(adapter(batch).detach().numpy())
            unsure.append(bool(certain < choices.get("ap", 0.1)))
            if not unsure[-1]:
                views.state[:] = before  # the form for CIFAR distorts in vain
        after = {f"after/{name}": value.detach().numpy() for name, value in trained.items()}
        teacher = {name: value for name, value in adapter.model_ema.named_parameters() if name in trained}
        after |= {f"after/teacher.{name}": value.detach().numpy() for name, value in teacher.items()}
        return {"logits": np.stack(logits), "unsure": np.array(unsure), **after}

    return steps
