"""Write `tests/golden/official_grafts.safetensors`: published methods that add a layer or a belief, in float64.

    python -m tests.golden.make.official_grafts CHECKOUTS

CHECKOUTS, the networks and the inputs are as for `official_methods`.  The file holds `METHOD/KIND/logits` and
`METHOD/KIND/after/NAME`, as in `official_methods`.  `sight` takes the samples one by one.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from tests.golden.make.adapted_nets import build
from tests.golden.make.official_methods import Arrays, last_layer, official, sgd, stepped, without_head
from tests.support.adapted import CLASSES, GOLDEN, KINDS, inputs, seed_of
from tests.support.official import SETTINGS

COMMITS = {"ZeroSiam": "Cascol-Chen/ZeroSiam 2dd3fc4", "SIGHT": "zszhou21/SIGHT 790217f"}


def is_transformer(net: nn.Module) -> bool:
    """Return whether the network has a norm behind its blocks, as transformers of timm have."""
    return isinstance(getattr(net, "norm", None), nn.LayerNorm)


class Parts(nn.Module):
    """A network in the parts that the published wrapper asks of its backbones."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @property
    def fc(self) -> nn.Linear:
        return last_layer(self.net)

    @property
    def head(self) -> nn.Linear:
        return last_layer(self.net)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the tokens of a transformer, or the features of a convolutional network as maps of one pixel."""
        kept: list[Tensor] = []
        if is_transformer(self.net):
            hook = self.net.get_submodule("norm").register_forward_hook(lambda layer, given, made: kept.append(made))
        else:
            hook = self.fc.register_forward_pre_hook(lambda layer, given: kept.append(given[0][:, :, None, None]))
        self.net(x)
        hook.remove()
        return kept[0]

    def global_pool(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))

    def forward_head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(features[:, 0] if is_transformer(self.net) else self.global_pool(features))
        return logits


def zerosiam(checkouts: Path, net: nn.Module, x: Tensor) -> Arrays:
    """The published wrapper and its adapter, with two optimizers as in the published script."""
    settings, folder = SETTINGS["zerosiam"], checkouts / "ZeroSiam"
    name = "vitbase_timm" if is_transformer(net) else "resnet50_gn_timm"
    module = official(folder, "tta_library.zerosiam")
    wrapped = module.configure_model(official(folder, "models.byol_wrapper").BYOLWrapper(Parts(net), name))
    predictor = sgd([*wrapped.predictor.parameters()], settings["predictor_lr"])
    adapter = module.Tent(wrapped, sgd(module.collect_params(wrapped)[0], settings["lr"]), predictor)
    found = stepped(adapter, net, x)
    return {**found, "after/predictor.matrix": wrapped.predictor[0].weight.detach().numpy()}


class Encoder(nn.Module):
    """The network in the form of the published model: an encoder and a classifier."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.encode, self.classifier = without_head(net), last_layer(net)


def sight(checkouts: Path, net: nn.Module, x: Tensor) -> Arrays:
    """The beliefs as their logarithms."""
    settings = SETTINGS["sight"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "src"]:
        del sys.modules[name]
    adapter = official(checkouts / "SIGHT", "src.SIGHT").SIGHT(
        Encoder(net), "cpu", CLASSES, eta_mu=settings["prototype_rate"], omega_mu=settings["source_pull"],
        beta=settings["surprise"], eta_h=settings["habit_rate"], tau=settings["temperature"],
    )  # fmt: skip
    beliefs = torch.cat([adapter.step(sample[None]) for batch in x for sample in batch])
    after = {"prototypes": adapter.mu, "habit": adapter.h[None], "belief": adapter.q_prev[None]}
    return {
        "logits": beliefs.log().reshape(*x.shape[:2], -1).numpy(),
        **{f"after/sight.{name}": value.numpy() for name, value in after.items()},
    }


RUNS: dict[str, Callable[[Path, nn.Module, Tensor], Arrays]] = {"zerosiam": zerosiam, "sight": sight}


def main() -> None:
    torch.set_num_threads(1)
    nn.Module.cuda = lambda module: module  # type: ignore[method-assign, assignment, misc]
    found: Arrays = {}
    for kind in KINDS:
        torch.set_default_dtype(torch.float32)
        given = inputs(seed_of(kind))
        net = build(kind, seed_of(kind), given).double().requires_grad_(False)
        torch.set_default_dtype(torch.float64)
        for name, run in RUNS.items():
            arrays = run(Path(sys.argv[1]), copy.deepcopy(net), torch.from_numpy(given["x"]).double())
            found |= {f"{name}/{kind}/{key}": np.ascontiguousarray(value, np.float32) for key, value in arrays.items()}
    versions = {"made_by": f"{Path(__file__).name}, torch {torch.__version__}", **COMMITS}
    save_file(found, GOLDEN / "official_grafts.safetensors", versions)


if __name__ == "__main__":
    main()
