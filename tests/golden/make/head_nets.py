"""Write `tests/golden/heads_*.onnx` and `.safetensors`: steps of TENT, EATA and SAR on other heads, in PyTorch.

    python -m tests.golden.make.head_nets

Three small nets have random weights: an encoder-decoder with batch norms, the same net with group norms, and a
classifier with group norms and a single answer.  Each golden file holds, from a float64 run, `METHOD/logits` of each
step, computed before its update, and `METHOD/after/PARAMETER` after the last step, with torch's names.  The metadata
holds the seed of weights and inputs.  The search for a seed leaves no entropy and no cosine so close to its bound that
float32 can put it on the other side.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pytorch_peers import norm_parameters, use_batch_statistics
from tests.support.head_cases import BATCH, CLASSES, GOLDEN, SETTINGS, SHAPE, UNTRAINED, inputs

CLEAR = 2e-5
"""Least distance of an entropy or a cosine from its bound; there are thousands of pixels."""


class Segmenter(nn.Module):
    """Two stages down, one up by a transposed convolution, a skip connection, and a resize to the input's size."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 6, 3, 1, 1, bias=False), norm(6)
        self.second, self.norm2 = nn.Conv2d(6, 8, 3, 2, 1, bias=False), norm(8)
        self.third, self.norm3 = nn.Conv2d(8, 8, 3, 2, 1, bias=False), norm(8)
        self.up, self.norm4 = nn.ConvTranspose2d(8, 6, 2, 2, bias=False), norm(6)
        self.merge, self.norm5 = nn.Conv2d(14, 8, 3, 1, 1, bias=False), norm(8)
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        skip = torch.relu(self.norm2(self.second(x)))
        deep = torch.relu(self.norm3(self.third(skip)))
        up = torch.relu(self.norm4(self.up(deep)))
        merged = torch.relu(self.norm5(self.merge(torch.cat([skip, up], 1))))
        return functional.interpolate(self.head(merged), scale_factor=2.0, mode="bilinear", align_corners=False)


def answerer() -> nn.Module:
    """A classifier with one answer, without a Sigmoid: [N, 1]."""
    first = [nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.GroupNorm(2, 8), nn.ReLU()]
    second = [nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.GroupNorm(2, 8), nn.ReLU()]
    third = [nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.GroupNorm(2, 12), nn.ReLU()]
    return nn.Sequential(*first, *second, *third, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 1))


NETWORKS: dict[str, Any] = {
    "batch": lambda: Segmenter(nn.BatchNorm2d),
    "group": lambda: Segmenter(lambda channels: nn.GroupNorm(2, channels)),
    "binary": answerer,
}


def build(kind: str, seed: int) -> nn.Module:
    """Return the net with different norms, and logits whose entropies lie on both sides of the margin."""
    torch.manual_seed(seed)
    net: nn.Module = NETWORKS[kind]()
    x = torch.from_numpy(inputs(seed)["calibration"])
    for value in norm_parameters(net).values():
        nn.init.uniform_(value, 0.5, 1.5) if bool((value == 1).all()) else nn.init.normal_(value, std=0.3)
    for norm in [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(x)
        last = [module for module in net.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
        logits = net.eval()(x).transpose(0, 1).flatten(1)
        factor = 2.5 / logits.std(1).mean()
        last.weight *= factor
        last.bias.copy_(factor * (last.bias - logits.mean(1)))
    return net


def classes_of(logits: Tensor) -> Tensor:
    """Return scores by class along axis 1; for a single answer, 0 for no and the logit for yes."""
    return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy H in nats at each position, [N, ...], from logits [N, C, ...]."""
    log_p = classes_of(logits).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


class Peer:
    """Base of the three methods: the norms' parameters, SGD with momentum 0.9, and the least distance from a bound."""

    def __init__(self, net: nn.Module, settings: dict[str, float], untrained: tuple[str, ...] = ()) -> None:
        self.net, self.settings = use_batch_statistics(copy.deepcopy(net).double()).requires_grad_(False), settings
        named = norm_parameters(self.net).items()
        self.parameters = {name: value for name, value in named if name.rpartition(".")[0] not in untrained}
        for value in self.parameters.values():
            value.requires_grad_(True)
        self.trained = list(self.parameters.values())
        self.optimizer = torch.optim.SGD(self.trained, lr=settings["lr"], momentum=0.9)
        self.nearest = math.inf
        self.shares: list[float] = []

    def below(self, values: Tensor, bound: float) -> Tensor:
        """Where `values` are below `bound`."""
        self.nearest = min(self.nearest, float((values.detach() - bound).abs().min()))
        self.shares.append(float((values < bound).double().mean()))
        return values.detach() < bound

    def limit(self, logits: Tensor) -> float:
        """The entropy below which a position is reliable."""
        return self.settings["margin"] * math.log(max(2, logits.shape[1]))

    def apply(self, gradients: Any) -> None:
        """One step of the optimizer."""
        for value, gradient in zip(self.trained, gradients, strict=True):
            value.grad = gradient
        self.optimizer.step()


class Tent(Peer):
    """The mean entropy of all positions."""

    def step(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        self.apply(torch.autograd.grad(entropy(logits).mean(), self.trained))
        return logits.detach()


class Eata(Peer):
    """Reliable and non-redundant positions, weighted; the anchor squares gradients of 64 samples or one batch."""

    def __init__(self, net: nn.Module, settings: dict[str, float], calibration: Tensor | None) -> None:
        super().__init__(net, settings)
        self.average: Tensor | None = None
        self.source = [value.detach().clone() for value in self.trained]
        self.fisher = [torch.zeros_like(value) for value in self.trained]
        dense = isinstance(net, Segmenter)
        batches = () if calibration is None else calibration.split(BATCH if dense else 64)
        for batch in batches:
            logits = classes_of(self.net(batch))
            loss = functional.cross_entropy(logits, logits.argmax(1))
            for total, gradient in zip(self.fisher, torch.autograd.grad(loss, self.trained), strict=True):
                total += gradient**2 / len(batches)

    def step(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        each, p, limit = entropy(logits), classes_of(logits).softmax(1).detach(), self.limit(logits)
        chosen = self.below(each, limit)
        if self.average is not None:
            shape = (1, -1, *[1] * (p.ndim - 2))
            cosine = functional.cosine_similarity(self.average.reshape(shape).expand_as(p), p, dim=1).abs()
            chosen &= self.below(cosine, self.settings["redundancy"])
        mean = p.movedim(1, -1)[chosen].mean(0)
        self.average = mean if self.average is None else 0.9 * self.average + 0.1 * mean
        loss = (each[chosen] * (limit - each[chosen].detach()).exp()).mean()
        for value, source, fisher in zip(self.trained, self.source, self.fisher, strict=True):
            loss = loss + self.settings.get("fisher", 0.0) * (fisher * (value - source) ** 2).sum()
        self.apply(torch.autograd.grad(loss, self.trained))
        return logits.detach()


class Sar(Peer):
    """Two passes over the reliable positions, the second at the worst point nearby; so few steps need no recovery."""

    def step(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        each, limit = entropy(logits), self.limit(logits)
        first = self.below(each, limit)
        gradients = torch.autograd.grad(each[first].mean(), self.trained)
        length = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
        before = [value.detach().clone() for value in self.trained]
        with torch.no_grad():
            for value, gradient in zip(self.trained, gradients, strict=True):
                value += self.settings["rho"] * gradient / length
        again = entropy(self.net(x))
        second = first & self.below(again, limit)
        gradients = torch.autograd.grad(again[second].mean(), self.trained)
        with torch.no_grad():
            for value, kept in zip(self.trained, before, strict=True):
                value.copy_(kept)
        self.apply(gradients)
        return logits.detach()


def peer(method: str, kind: str, net: nn.Module, given: dict[str, np.ndarray]) -> Any:
    """Return the method in PyTorch on a copy of the net, in double precision."""
    settings = SETTINGS[kind][method]
    if method == "tent":
        return Tent(net, settings)
    if method == "sar":
        return Sar(net, settings, UNTRAINED[kind])
    calibration = torch.from_numpy(given["calibration"]).double() if "fisher" in settings else None
    return Eata(net, settings, calibration)


def trajectory(method: str, kind: str, net: nn.Module, given: dict[str, np.ndarray]) -> tuple[dict[str, Any], bool]:
    """Return the golden numbers of one method, and whether every bound was clear and divided the positions."""
    adapter = peer(method, kind, net, given)
    logits = torch.stack([adapter.step(torch.from_numpy(x).double()) for x in given["x"]])
    numbers = {f"{method}/logits": logits.numpy()}
    numbers |= {f"{method}/after/{name}": value.detach().numpy() for name, value in adapter.parameters.items()}
    divided = all(0.03 < share < 0.99 for share in adapter.shares)
    return numbers, adapter.nearest > CLEAR and divided


def export(net: nn.Module, path: Path) -> None:
    """Write the net with the tracing exporter in a mode that keeps norms, without traces of this machine."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.randn(2, *SHAPE),), str(path), dynamo=False, opset_version=18, input_names=["x"],
            output_names=["logits"], dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        )  # fmt: skip
    model = onnx.load(path)
    for node in model.graph.node:
        node.doc_string = ""
    onnx.save(model, path)


def main() -> None:
    torch.set_num_threads(1)
    for kind in NETWORKS:
        for seed in range(400):
            given, net = inputs(seed), build(kind, seed)
            ran = [trajectory(method, kind, net, given) for method in SETTINGS[kind]]
            if all(clear for _, clear in ran):
                break
        else:
            raise SystemExit(f"{kind}: no seed is clear")
        print(f"{kind}: seed {seed}")
        export(net, GOLDEN / f"heads_{kind}.onnx")
        made = {"seed": str(seed), "made_by": f"tests/golden/make/head_nets.py, torch {torch.__version__}"}
        arrays = {k: np.ascontiguousarray(v, np.float32) for found, _ in ran for k, v in found.items()}
        save_file(arrays, GOLDEN / f"heads_{kind}.safetensors", made)


if __name__ == "__main__":
    main()
