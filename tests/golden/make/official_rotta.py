"""Write `tests/golden/official_rotta.safetensors`: eight steps of RoTTA's published class, in float64.

    python -m tests.golden.make.official_rotta CHECKOUTS

CHECKOUTS is as for `official_methods`, with the repository `RoTTA`.  The network is that of
`tests/golden/surgeon_batch.onnx`.  Differences from the published script: ttac's distortions and random numbers, and the
memory in the order of ttac's places, so that each sample gets the same noise.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from tests.golden.make.official_cotta import Views
from tests.golden.make.official_methods import official
from tests.golden.make.surgeon_nets import built
from tests.support.official_rotta import GOLDEN, SETTINGS, stream
from tests.support.surgeon_case import CLASSES

COMMIT = "BIT-DA/RoTTA 67e34c9"
Arrays = dict[str, np.ndarray]


class Places:
    """The published memory, which also knows the place of each sample: that of the one it replaced, or the next."""

    def __init__(self, memory: Any) -> None:
        self.memory, self.places = memory, list[Any]()

    def add_instance(self, instance: Any) -> None:
        before = self._held()
        self.memory.add_instance(instance)
        after = self._held()
        new = [item for item in after if not any(item is other for other in before)]
        gone = [item for item in before if not any(item is other for other in after)]
        assert len(new) <= 1 and len(gone) <= len(new)
        if gone:
            place = next(i for i, item in enumerate(self.places) if item is gone[0])
            self.places[place] = new[0]
        elif new:
            self.places.append(new[0])

    def get_memory(self) -> tuple[list[Tensor], list[float]]:
        return [item.data for item in self.places], [item.age / self.memory.capacity for item in self.places]

    def _held(self) -> list[Any]:
        return [item for items in self.memory.data for item in items]


def padded(views: Views, size: int) -> Any:
    """The distortion of samples as the first of `size`, for which ttac draws its noise."""

    def distort(x: Tensor) -> Tensor:
        return views(torch.cat([x, torch.zeros(size - len(x), *x.shape[1:])]))[: len(x)]

    return distort


def rotta(checkouts: Path, net: nn.Module) -> Arrays:
    for name in ("yacs", "yacs.config", "sklearn", "pandas", "iopath", "iopath.common", "iopath.common.file_io"):
        sys.modules.setdefault(name, MagicMock())
    module = official(checkouts / "RoTTA", "core.adapter.rotta")
    sizes = Namespace(
        MEMORY_SIZE=SETTINGS["capacity"], UPDATE_FREQUENCY=SETTINGS["interval"], NU=1 - SETTINGS["teacher_decay"],
        ALPHA=SETTINGS["statistics_momentum"], LAMBDA_T=SETTINGS["age_weight"], LAMBDA_U=SETTINGS["doubt_weight"],
    )  # fmt: skip
    options = Namespace(
        ADAPTER=Namespace(RoTTA=sizes), CORRUPTION=Namespace(NUM_CLASS=CLASSES), OPTIM=Namespace(STEPS=1),
        INPUT=Namespace(SIZE=(16, 16)),
    )  # fmt: skip
    module.get_tta_transforms = lambda options: padded(Views(SETTINGS), SETTINGS["capacity"])
    adapter = module.RoTTA(options, net, lambda tensors: torch.optim.SGD(tensors, SETTINGS["lr"], SETTINGS["momentum"]))
    adapter.mem = Places(adapter.mem)
    logits, filled = [], []
    for batch in stream():
        logits.append(adapter(torch.from_numpy(batch).double()).detach().numpy())
        filled.append(len(adapter.mem.places))
    found = {"logits": np.stack(logits), "filled": np.array(filled)}
    for owner, model in (("", adapter.model), ("teacher.", adapter.model_ema)):
        for name, norm in model.named_modules():
            if hasattr(norm, "source_mean"):
                tensors = {"scale": norm.weight, "bias": norm.bias, "mean": norm.source_mean, "var": norm.source_var}
                found |= {f"after/{owner}{name}.{role}": t.detach().numpy() for role, t in tensors.items()}
    found["after/memory.images"] = torch.stack([item.data for item in adapter.mem.places]).numpy()
    found["after/memory.ages"] = np.array([item.age for item in adapter.mem.places])
    found["after/memory.entropies"] = np.array([item.uncertainty for item in adapter.mem.places])
    print("filled", filled, "ages", found["after/memory.ages"])
    return found


def main() -> None:
    torch.set_num_threads(1)
    nn.Module.cuda = lambda module: module  # type: ignore[method-assign, assignment, misc]
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment, misc]
    net = built("batch").double()
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    found = {key: np.ascontiguousarray(value, np.float32) for key, value in rotta(Path(sys.argv[1]), net).items()}
    made = {"made_by": f"{Path(__file__).name}, torch {torch.__version__}", "RoTTA": COMMIT}
    save_file(found, GOLDEN / "official_rotta.safetensors", made)


if __name__ == "__main__":
    main()
