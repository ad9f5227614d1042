"""Write `tests/golden/official_foa.safetensors`: five steps of FOA's published code, in float64.

    python -m tests.golden.make.official_foa CHECKOUTS

CHECKOUTS, the network and the inputs are as for `official_methods`.  Needs the package `cma` 4.5.  Differences from the
published script: the width of the network in place of 768, ttac's first prompts, the normal numbers of ttac turned into
the eigenvectors of `cma`, and a first covariance of exactly 1, where `cma` tells the eigenvalues apart by 1e-4.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from tests.golden.make.adapted_nets import Transformer, build
from tests.golden.make.official_methods import Arrays, official
from tests.support.adapted import GOLDEN, inputs, seed_of
from tests.support.consistency_case import numbers
from tests.support.official import SETTINGS
from ttac.passes.operators.random_numbers import seeded

COMMIT = "mr-eggplant/FOA 004b02d"
CLEAR = 1e-4
"""Least relative difference of two fitnesses, so that float32 ranks the candidates alike."""


class Vit(nn.Module):
    """The network under the names of the published wrapper."""

    def __init__(self, net: Transformer) -> None:
        super().__init__()
        self.embed, self.token, self.blocks, self.norm, self.head = net.embed, net.token, net.blocks, net.norm, net.head
        self.embed_dim, self.norm_pre = net.token.shape[-1], nn.Identity()

    def patch_embed(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2)

    def _pos_embed(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)


class Patches:
    """`patch_embed` with the size that the published wrapper reads."""

    def __init__(self, embed: Any) -> None:
        self.embed, self.patch_size = embed, (2, 2)

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.embed(x)
        return found


class Normals:
    """The normal numbers of ttac, as many as a step asks for."""

    def __init__(self, seed: int) -> None:
        self.state = [int(word) for word in seeded(seed)]

    def __call__(self, count: int, n: int) -> np.ndarray:
        stream, half = numbers(self.state), -(-n // 2)
        drawn = np.array([[next(stream) for _ in range(2 * half)] for _ in range(count)])
        radius, angle = np.sqrt(-2 * np.log(drawn[:, :half])), 2 * math.pi * drawn[:, half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)[:, :n]


def published(checkouts: Path, width: int) -> Any:
    """The published file for networks of another width."""
    for name in ("timm.models.vision_transformer", "timm.models.helpers", "utils.cli_utils"):
        sys.modules[name] = MagicMock()
    nn.Module.cuda = lambda module: module  # type: ignore[method-assign, assignment, misc]
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment, misc]
    with tempfile.TemporaryDirectory() as folder:
        text = (checkouts / "FOA" / "tta_library" / "foa.py").read_text(encoding="utf-8")
        (Path(folder) / "foa.py").write_text(text.replace("768", str(width)), encoding="utf-8")
        sys.path.insert(0, str(checkouts / "FOA"))
        return official(Path(folder), "foa")


def foa(checkouts: Path, net: Transformer, given: Arrays) -> Arrays:
    settings, width = SETTINGS["foa"], int(net.token.shape[-1])
    module = published(checkouts, width)
    vit = Vit(net)
    vit.patch_embed = Patches(vit.patch_embed)  # type: ignore[method-assign, assignment]
    count = settings["prompts"]
    model = module.PromptViT(vit, count)
    bound = math.sqrt(6 / (3 * 2 * 2 + width))
    first = np.random.RandomState(settings["seed"]).uniform(-bound, bound, (1, count, width)).astype(np.float32)
    model.prompts = nn.Parameter(torch.from_numpy(first), requires_grad=False)
    adapter = module.FOA(model, settings["discrepancy"])
    adapter.imagenet_mask = None
    adapter.obtain_origin_stat([(torch.from_numpy(given["calibration"]).double(),)])
    strategy, draw = adapter.es, Normals(settings["seed"])
    strategy.sm.C = np.eye(strategy.N)
    strategy.sm.D, strategy.sm.B = np.ones(strategy.N), np.eye(strategy.N)
    strategy.sm.randn = lambda number, n: draw(number, n) @ strategy.sm.B
    logits, fitness = [], []
    for batch in given["x"]:
        logits.append(adapter(torch.from_numpy(batch).double()).numpy())
        fitness.append(adapter.best_loss)
        ranked = np.sort(strategy.fit.fit)
        assert (np.diff(ranked) / ranked[1:]).min() > CLEAR, np.diff(ranked).min()
    return {
        "logits": np.stack(logits),
        "fitness": np.array(fitness),
        "after/prompts": adapter.best_prompts.numpy(),
        "after/stream.centre": adapter.hist_stat.numpy(),
        "after/evolution.mean": strategy.mean,
        "after/evolution.covariance": strategy.sm.C,
        "after/evolution.path": strategy.pc,
        "after/evolution.sigma_path": strategy.adapt_sigma.ps,
        "after/evolution.sigma": np.array(strategy.sigma),
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    given = inputs(seed_of("layer"))
    net = build("layer", seed_of("layer"), given).double().requires_grad_(False)
    assert isinstance(net, Transformer)
    torch.set_default_dtype(torch.float64)
    with contextlib.redirect_stdout(io.StringIO()):
        arrays = foa(Path(sys.argv[1]), net, given)
    found = {f"foa/layer/{key}": np.ascontiguousarray(value, np.float32) for key, value in arrays.items()}
    import cma

    versions = {"made_by": f"{Path(__file__).name}, torch {torch.__version__}, cma {cma.__version__}", "FOA": COMMIT}
    save_file(found, GOLDEN / "official_foa.safetensors", versions)


if __name__ == "__main__":
    main()
