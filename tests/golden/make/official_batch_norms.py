"""Write `tests/golden/official_batch_norms.safetensors`: published statistics of batch norms, in float64.

    python -m tests.golden.make.official_batch_norms CHECKOUTS

CHECKOUTS is as for `official_methods`.  The network and the inputs are those of `tests/golden/surgeon_batch.onnx`.  The
file holds `RUN/logits` [6, 32, 6] of each step and `RUN/after/NAME` after the last step.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from benchmarks.pytorch_peers import entropy, use_batch_statistics
from tests.golden.make import official_roid
from tests.golden.make.official_methods import official
from tests.golden.make.surgeon_nets import built
from tests.support.official_batch_norms import GOLDEN, SETTINGS, channel_order, stream
from tests.support.surgeon_case import CLASSES

COMMITS = {
    "DELTA": "bwbwzhao/DELTA e3c5df5",
    "MECTA": "SonyResearch/MECTA 2107f73",
    "test-time-adaptation": official_roid.COMMIT,
}

Arrays = dict[str, np.ndarray]


def delta(checkouts: Path, net: nn.Module, x: Tensor) -> Arrays:
    """Entropy weights, re-weighting and renormalisation."""
    settings = SETTINGS["delta"]
    module = official(checkouts / "DELTA", "algorithms.delta")
    options = Namespace(
        norm_type="rn", old_prior=1 - settings["statistics_momentum"], optim_type="sgd", optim_lr=settings["lr"],
        optim_momentum=0.9, optim_wd=0.0, class_num=CLASSES, loss_type="entropy", ent_w=True,
        dot=settings["balance_decay"],
    )  # fmt: skip
    adapter = module.DELTA(options, net)
    logits = torch.stack([adapter(batch, None).detach() for batch in x]).numpy()
    found = {"logits": logits}
    for name, norm in adapter.model.named_modules():
        if isinstance(norm, module.TBR):
            found[f"after/{name}.scale"] = norm.layer.weight.detach().numpy()
            found[f"after/{name}.bias"] = norm.layer.bias.detach().numpy()
            found[f"after/{name}.mean"] = norm.running_mean.numpy()
            found[f"after/{name}.var"] = (norm.running_std**2 - norm.layer.eps).numpy()
    return found


def gated_norms(module: Any, net: nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
    """Put the published norms in the place of all batch norms, and return them by name."""
    norms = {name: norm for name, norm in net.named_modules() if isinstance(norm, nn.BatchNorm2d)}
    net.requires_grad_(False)
    for name, norm in norms.items():
        gated = module.MectaNorm2d(norm.num_features, norm.eps, use_forget_gate=True,
                                    beta_thre=settings["least_drift"], prune_q=1 - settings["keep"])  # fmt: skip
        gated.load_state_dict(norm.state_dict())
        norms[name] = gated
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, gated)
    return norms


def mecta(checkouts: Path, net: nn.Module, x: Tensor, run: str = "mecta") -> Arrays:
    """The published norms under the published step: no backward if no norm has drifted.

    The permutations that choose the dropped channels come from ttac's generator.

    The norms decide inside the forward which of them learn, which PyTorch heeds in the next forward only: a norm would
    learn one step late, and fail where none was active before.  So all may learn before each forward.
    """
    settings = {"keep": 1.0, "seed": 0, **SETTINGS[run]}
    for name in [name for name in sys.modules if name.partition(".")[0] in ("models", "utils")]:
        del sys.modules[name]
    module = official(checkouts / "MECTA", "models.batch_norm")
    norms = gated_norms(module, net, settings)
    parameters = [value for norm in norms.values() for value in (norm.weight, norm.bias)]
    optimizer = torch.optim.SGD(parameters, settings["lr"], 0.9)
    logits, active, place = [], [], {"step": 0, "norm": 0}
    for i, norm in enumerate(norms.values()):
        norm.register_forward_pre_hook(lambda *_, i=i: place.update(norm=i))

    def permutation(channels: int, **_: Any) -> Tensor:
        return torch.from_numpy(channel_order(settings["seed"], **place, norms=len(norms), channels=channels))

    module.torch = Drawn(torch, permutation)
    for batch in x:
        for parameter in parameters:
            parameter.requires_grad_()
        scores = net(batch)
        if module.has_accum_bn_grad(net):
            entropy(scores).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            place["step"] += 1
        logits.append(scores.detach().numpy())
        active.append([not norm.full_matched for norm in norms.values()])
    found = {"logits": np.stack(logits), "active": np.array(active)}
    roles = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    values = {f"{n}.{role}": getattr(norm, key) for n, norm in norms.items() for key, role in roles.items()}
    return {**found, **{f"after/{name}": value.detach().numpy() for name, value in values.items()}}


def roid(checkouts: Path, net: nn.Module, x: Tensor) -> Arrays:
    """The published step on batch norms with the statistics of the batch: the view has those of the kept samples."""
    net = use_batch_statistics(net.requires_grad_(False))
    found = official_roid.roid(checkouts, SETTINGS["roid"])(net, x)
    return {name.replace(".weight", ".scale"): value for name, value in found.items()}


class Drawn(ModuleType):
    """The module `torch` with another `randperm`."""

    def __init__(self, module: ModuleType, randperm: Callable[..., Tensor]) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(vars(module), randperm=randperm)


RUNS: dict[str, Callable[[Path, nn.Module, Tensor], Arrays]] = {
    "delta": delta,
    "mecta": mecta,
    "mecta_channels": partial(mecta, run="mecta_channels"),
    "roid": roid,
}


def main() -> None:
    torch.set_num_threads(1)
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment, misc]
    nn.Module.cuda = lambda module: module  # type: ignore[method-assign, assignment, misc]
    found: Arrays = {}
    for name, run in RUNS.items():
        torch.set_default_dtype(torch.float32)
        net = built("batch").double()
        torch.set_default_dtype(torch.float64)
        arrays = run(Path(sys.argv[1]), net, torch.from_numpy(stream()).double())
        found |= {f"{name}/{key}": np.ascontiguousarray(value, np.float32) for key, value in arrays.items()}
    save_file(found, GOLDEN, {"made_by": f"{Path(__file__).name}, torch {torch.__version__}", **COMMITS})


if __name__ == "__main__":
    main()
