"""Write `tests/golden/official_law.safetensors`: five steps of the published code of LAW, in float64.

    python -m tests.golden.make.official_law CHECKOUTS

CHECKOUTS is a folder with the checkout `LayerwiseTTA`.  Networks and inputs are those of `tests/golden/adapted_*`, the
distortions ttac's.  Before each batch the gradients are cleared: the published code measures a tensor with the gradients
of the last update added.
"""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from benchmarks.pytorch_peers import norm_parameters
from tests.golden.make.adapted_nets import build
from tests.golden.make.official_cotta import Views
from tests.support.adapted import GOLDEN, KINDS, inputs, seed_of
from tests.support.official import SETTINGS

Arrays = dict[str, np.ndarray]
COMMIT = "junia3/LayerwiseTTA 357c1a1"


def published(checkouts: Path) -> type[nn.Module]:
    """Return the class of the published file, with stand-ins for the modules that it does not call."""
    folder = str(checkouts / "LayerwiseTTA" / "classification")
    for name in ("augmentations", "augmentations.transforms_cotta"):
        sys.modules[name] = MagicMock(__path__=[])
    sys.modules["methods"] = package = ModuleType("methods")
    package.__path__ = [f"{folder}/methods"]
    base = ModuleType("methods.base")
    base.TTAMethod = nn.Module  # type: ignore[attr-defined]
    sys.modules["methods.base"] = base
    found: type[nn.Module] = __import__("methods.law", fromlist=["LAW"]).LAW
    return found


def law(checkouts: Path, run: str, net: nn.Module, x: Tensor) -> Arrays:
    """Return `logits` of each step, and after the last step the parameters and the mean Fisher information."""
    settings, names = SETTINGS[run], norm_parameters(net)
    for value in names.values():
        value.requires_grad_()
    kind = published(checkouts)
    adapter = kind.__new__(kind)
    nn.Module.__init__(adapter)
    chosen = {
        "model": net, "base_lr": settings["lr"], "betas": (0.9, 0.999), "weight_decay": 0.0, "eps": 1e-8,
        "tau": settings["exponent"], "transforms": Views(settings), "grad_weight": defaultdict(float),
        "trainable_dict": names, "optimizer": SimpleNamespace(),
    }  # fmt: skip
    for name, value in chosen.items():
        setattr(adapter, name, value)
    logits = []
    for batch in x:
        net.zero_grad()
        logits.append(adapter.forward_and_adapt([batch]).detach().numpy())
    information = [adapter.grad_weight[name].mean().item() for name in names]
    after = {f"after/{name}": value.detach().numpy() for name, value in names.items()}
    return {"logits": np.stack(logits), "after/fisher.mean": np.array(information), **after}


def main() -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(sys.argv[1]) / "LayerwiseTTA" / "classification"))
    found: Arrays = {}
    for kind in KINDS:
        torch.set_default_dtype(torch.float32)
        given = inputs(seed_of(kind))
        net = build(kind, seed_of(kind), given).double().requires_grad_(False)
        torch.set_default_dtype(torch.float64)
        for run in ("law", "law-exponent"):
            arrays = law(Path(sys.argv[1]), run, copy.deepcopy(net), torch.from_numpy(given["x"]).double())
            found |= {f"{run}/{kind}/{key}": np.ascontiguousarray(value, np.float32) for key, value in arrays.items()}
    versions = {"made_by": f"{Path(__file__).name}, torch {torch.__version__}", "LayerwiseTTA": COMMIT}
    save_file(found, GOLDEN / "official_law.safetensors", versions)


if __name__ == "__main__":
    main()
