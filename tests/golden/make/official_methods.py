"""Write `tests/golden/official_methods.safetensors`: five steps of the published code of methods, in float64.

    python -m tests.golden.make.official_methods CHECKOUTS

CHECKOUTS is a folder with checkouts of the repositories in `COMMITS`, each in a folder named like the repository.  The
networks and inputs are those of `tests/golden/adapted_*`.  The file holds `METHOD/KIND/logits` [5, 8, 6] of each step
and `METHOD/KIND/after/NAME` after the last step.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from benchmarks.pytorch_peers import entropy, norm_parameters
from tests.golden.make import official_cotta, official_roid
from tests.golden.make.adapted_nets import build
from tests.support.adapted import CLASSES, GOLDEN, KINDS, inputs, seed_of
from tests.support.consistency_case import numbers
from tests.support.official import SETTINGS
from ttac.passes.operators.random_numbers import seeded

COMMITS = {
    "NEO": "awesomealex1/NEO cd8ac01",
    "T3A": "matsuolab/T3A ff8cde5",
    "SHOT": "tim-learn/SHOT f7d555a",
    "COME": "BlueWhaleLab/COME 409a19b",
    "DELTA": "bwbwzhao/DELTA e3c5df5",
    "DeYO": "Jhyun17/DeYO 3d7d289",
    "cotta": official_cotta.COMMIT,
    "test-time-adaptation": official_roid.COMMIT,
}
UNUSED = ("domainbed.networks", "domainbed.lib.misc", "einops", "matplotlib", "wandb")
"""Modules that the published files import and these runs never call."""

Arrays = dict[str, np.ndarray]
Run = Callable[[nn.Module, Tensor], Arrays]


class Stand(MetaPathFinder, Loader):
    """An import hook that gives an empty stand-in for each module in `UNUSED`."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a spec for a module in `UNUSED`, or inside one."""
        unused = any(name == other or name.startswith(f"{other}.") for other in UNUSED)
        return ModuleSpec(name, self, is_package=True) if unused else None

    def create_module(self, spec: ModuleSpec) -> Any:
        """Return the stand-in."""
        return MagicMock(__name__=spec.name, __path__=[], __spec__=spec)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the stand-in empty."""


def official(folder: Path, module: str) -> Any:
    """Return the module of a checkout, imported with the checkout's folder at the head of the path."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(folder))


def last_layer(net: nn.Module) -> nn.Linear:
    return [module for module in net.modules() if isinstance(module, nn.Linear)][-1]


def without_head(net: nn.Module) -> nn.Module:
    """Return a copy of the network that gives the features of its last linear layer."""
    features = copy.deepcopy(net)
    head = last_layer(features)
    for module in features.modules():
        for name, child in module.named_children():
            if child is head:
                setattr(module, name, nn.Identity())
    return features


def neo(checkouts: Path, class_name: str) -> Run:
    def run(net: nn.Module, x: Tensor) -> Arrays:
        head, features = last_layer(net), without_head(net)
        centred = getattr(official(checkouts / "NEO", "neo_layers"), class_name)(head.in_features, CLASSES)
        centred.load_state_dict(head.state_dict())
        logits = torch.stack([centred(features(batch)) for batch in x])
        return {"logits": logits.detach().numpy(), "after/features.mean": centred.global_mean.numpy()}

    return run


def t3a(checkouts: Path, supports: int) -> Run:
    def run(net: nn.Module, x: Tensor) -> Arrays:
        net, x = net.float(), x.float()  # the published code makes its labels float32
        parts = Namespace(featurizer=without_head(net), classifier=last_layer(net))
        hparams = {"filter_K": supports, "cached_loader": False}
        published = official(checkouts / "T3A", "domainbed.adapt_algorithms").T3A((3, 8, 8), CLASSES, 1, hparams, parts)
        logits = torch.stack([published(batch, adapt=True) for batch in x])
        return {"logits": logits.detach().numpy(), "after/entropies": published.ent.numpy()}

    return run


def trained(net: nn.Module) -> list[nn.Parameter]:
    """Return scale and bias of every norm, which are all that gets gradients."""
    parameters = norm_parameters(net.requires_grad_(False))
    return [parameter.requires_grad_() for parameter in parameters.values()]


def after(net: nn.Module) -> Arrays:
    return {f"after/{name}": value.detach().numpy() for name, value in norm_parameters(net).items()}


def sgd(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def stepped(adapter: Callable[[Tensor], Tensor], net: nn.Module, x: Tensor) -> Arrays:
    """Return the logits of each step, and the parameters after the last."""
    logits = torch.stack([adapter(batch).detach() for batch in x])
    return {"logits": logits.numpy(), **after(net)}


def shot(checkouts: Path) -> Run:
    """The loss of the script `object/image_target.py`, with the published function of the entropy."""

    def run(net: nn.Module, x: Tensor) -> Arrays:
        optimizer = sgd(trained(net), SETTINGS["shot-im"]["lr"])
        surprise = official(checkouts / "SHOT" / "object", "loss").Entropy

        def step(batch: Tensor) -> Tensor:
            logits: Tensor = net(batch)
            p = logits.softmax(1)
            mean = p.mean(0)
            loss = surprise(p).mean() - torch.sum(-mean * torch.log(mean + 1e-5))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return logits

        return stepped(step, net, x)

    return run


def come(checkouts: Path, host: str) -> Run:
    """The published file with the number of classes in place of its constant 1000."""

    def run(net: nn.Module, x: Tensor) -> Arrays:
        settings = SETTINGS[f"{host}-come"]
        parameters = trained(net)
        with tempfile.TemporaryDirectory() as folder:
            text = (checkouts / "COME" / f"{host}_come.py").read_text(encoding="utf-8")
            (Path(folder) / f"{host}_come.py").write_text(text.replace("1000", str(CLASSES)), encoding="utf-8")
            module = official(Path(folder), f"{host}_come")
        margin = settings.get("margin", 0.0) * math.log(CLASSES)
        if host == "tent":
            adapter = module.Tent_COME(net, sgd(parameters, settings["lr"]), None)
        else:
            redundancy = settings["redundancy"]
            adapter = module.EATA_COME(net, sgd(parameters, settings["lr"]), e_margin=margin, d_margin=redundancy)
        return stepped(adapter, net, x)

    return run


def delta(checkouts: Path) -> Run:
    """Entropy weights and re-weighting, without the statistics, and with the norms of these networks."""

    def run(net: nn.Module, x: Tensor) -> Arrays:
        settings = SETTINGS["delta"]
        module = official(checkouts / "DELTA", "algorithms.delta")
        module.nn = Namespace(Module=nn.Module, BatchNorm2d=(nn.GroupNorm, nn.LayerNorm))
        torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment, misc]
        options = Namespace(
            norm_type="none", optim_type="sgd", optim_lr=settings["lr"], optim_momentum=0.9, optim_wd=0.0,
            class_num=CLASSES, loss_type="entropy", ent_w=True, dot=settings["balance_decay"],
        )  # fmt: skip
        adapter = module.DELTA(options, net)
        found = stepped(lambda batch: adapter(batch, None), adapter.model, x)
        return {**found, "after/classes.average": adapter.qhat[0].numpy()}

    return run


def rearrange(x: Tensor, pattern: str, *, ps1: int, ps2: int) -> Tensor:
    """Do the two patterns of einops that the published file uses: apart into patches, and together again."""
    if pattern.startswith("b c"):
        n, c, height, width = x.shape
        apart = x.reshape(n, c, ps1, height // ps1, ps2, width // ps2).permute(0, 2, 4, 1, 3, 5)
        return apart.reshape(n, ps1 * ps2, c, height // ps1, width // ps2)
    n, _, c, h, w = x.shape
    return x.reshape(n, ps1, ps2, c, h, w).permute(0, 3, 1, 4, 2, 5).reshape(n, c, ps1 * h, ps2 * w)


class Replayed:
    """`torch` for the published file, whose random numbers are those of ttac for the samples of low entropy."""

    def __init__(self, net: nn.Module, seed: int, limit: float) -> None:
        self.state, self.limit, self.kept = [int(word) for word in seeded(seed)], limit, np.array([], bool)
        net.register_forward_hook(self.see)

    def see(self, net: nn.Module, inputs: Any, logits: Tensor) -> None:
        """Note the samples of low entropy in the forward of a whole batch."""
        if torch.is_grad_enabled():
            self.kept = (entropy(logits.detach()) < self.limit).numpy()

    def rand(self, count: int, places: int) -> Tensor:
        """Return numbers in the order that ttac's descending sort gives to an ascending one."""
        stream = numbers(self.state)
        drawn = np.array([[next(stream) for _ in range(places)] for _ in self.kept])
        return -torch.from_numpy(drawn[self.kept])

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def deyo(checkouts: Path) -> Run:
    def run(net: nn.Module, x: Tensor) -> Arrays:
        settings = SETTINGS["deyo"]
        module = official(checkouts / "DeYO" / "methods", "deyo")
        limit, parameters = settings["margin"] * math.log(CLASSES), trained(net)
        module.rearrange = rearrange
        module.torchvision = Namespace(transforms=Namespace(Resize=lambda size: lambda images: images))
        module.torch = Replayed(net, settings["seed"], limit)
        options = Namespace(
            wandb_log=False, filter_ent=True, aug_type="patch", patch_len=4, filter_plpd=True,
            plpd_threshold=settings["shape_margin"], reweight_ent=1, reweight_plpd=1,
        )  # fmt: skip
        adapter = module.DeYO(
            net, options, sgd(parameters, settings["lr"]), deyo_margin=limit, margin_e0=0.4 * math.log(CLASSES)
        )
        selected: list[int] = []

        def step(batch: Tensor) -> Tensor:
            logits, _, count = adapter(batch, 0)
            selected.append(count)
            return logits

        return {**stepped(step, net, x), "selected": np.array(selected)}

    return run


def runs(checkouts: Path) -> dict[str, Run]:
    """Return the runs by name."""
    return {
        "neo": neo(checkouts, "NEO"),
        "neo-newest": neo(checkouts, "NEO_Continual"),
        "t3a": t3a(checkouts, int(SETTINGS["t3a"]["supports"])),
        "shot-im": shot(checkouts),
        "tent-come": come(checkouts, "tent"),
        "eata-come": come(checkouts, "eata"),
        "delta": delta(checkouts),
        "deyo": deyo(checkouts),
        "roid": official_roid.roid(checkouts, SETTINGS["roid"]),
        **{run: official_cotta.cotta(checkouts, run) for run in ("cotta", "cotta-all", "cotta-imagenet")},
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    sys.meta_path.insert(0, Stand())
    checkouts = Path(sys.argv[1])
    found: Arrays = {}
    for kind in KINDS:
        torch.set_default_dtype(torch.float32)
        given = inputs(seed_of(kind))
        net = build(kind, seed_of(kind), given).double().requires_grad_(False)
        torch.set_default_dtype(torch.float64)
        for name, run in runs(checkouts).items():
            arrays = run(copy.deepcopy(net), torch.from_numpy(given["x"]).double())
            found |= {f"{name}/{kind}/{key}": np.ascontiguousarray(value, np.float32) for key, value in arrays.items()}
    versions = {"made_by": f"{Path(__file__).name}, torch {torch.__version__}", **COMMITS}
    save_file(found, GOLDEN / "official_methods.safetensors", versions)


if __name__ == "__main__":
    main()
