"""Write `tests/golden/official_batch_norms.safetensors`: published statistics of batch norms, in float64.

    python -m tests.golden.make.official_batch_norms CHECKOUTS

CHECKOUTS is as for `official_methods`.  The network and the inputs are those of `tests/golden/surgeon_batch.onnx`.  The
file holds `RUN/logits` [6, 32, 6] of each step and `RUN/after/NAME` after the last step.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from tests.golden.make.official_methods import official
from tests.golden.make.surgeon_nets import built
from tests.support.official_batch_norms import GOLDEN, SETTINGS, stream
from tests.support.surgeon_case import CLASSES

COMMITS = {"DELTA": "bwbwzhao/DELTA e3c5df5"}

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


RUNS: dict[str, Callable[[Path, nn.Module, Tensor], Arrays]] = {"delta": delta}


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
