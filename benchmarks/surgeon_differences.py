"""Which difference from SURGEON's published code costs error?  `python -m benchmarks.surgeon_differences`.

All weights of the shipped net train, in PyTorch, with the formulas of the published code (kadmkbl/SURGEON 3609698) or
with those of ttac for `select=topk`.  Each row swaps one of them.  `--share` keeps this fraction of every layer's
input; without it, the importance of the layers decides, as in the paper.  Seven corruptions in turn, never reset, batch
64.

`--check CHECKOUTS` runs two steps of the published layers beside the formulas; CHECKOUTS holds a checkout `SURGEON`.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.agreement import BATCH, DEMO, SHIFTS, network

Stream = list[tuple[Tensor, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The points in which ttac differs; the defaults are those of the published code.

    Attributes:
        exact_input: the gradient of a norm's input reads the whole input, else the kept values and zeros.
        old_statistics: the gradients of a norm are those of running statistics from before the batch.
        own_statistics: for the scale, the kept values are standardised by their own mean and variance.
        own_input: the same for the gradient of the norm's input.
        unit_input: in the gradient of the norm's input, the standardised kept values have a mean square of 1.
        biases: biases train.
        stale: the probe adds to the gradients of the last update.
        probe: samples of the probe.
        share: kept fraction of every input; None for the ratios of the importance.
    """

    exact_input: bool = True
    old_statistics: bool = True
    own_statistics: bool = True
    own_input: bool = False
    unit_input: bool = False
    biases: bool = False
    stale: bool = True
    probe: int = 10
    share: float | None = None


PUBLISHED = Rules()
TTAC = Rules(exact_input=False, old_statistics=False, own_statistics=False, biases=True, stale=False, probe=1)
ROWS = {
    "published code": PUBLISHED,
    "published, the norm's input gradient from kept values": replace(PUBLISHED, exact_input=False),
    "published, gradients of the forward that ran": replace(PUBLISHED, old_statistics=False),
    "published, kept values standardised as the batch": replace(PUBLISHED, own_statistics=False),
    "published, biases train": replace(PUBLISHED, biases=True),
    "published, no gradient of the last update in the probe": replace(PUBLISHED, stale=False),
    "published, probe of 1 sample": replace(PUBLISHED, probe=1),
    "ttac": TTAC,
    "ttac, probe of 10 samples": replace(TTAC, probe=10),
    "ttac, the norm's input gradient exact": replace(TTAC, exact_input=True),
    "ttac, kept values standardised by themselves for the scale": replace(TTAC, own_statistics=True),
    "ttac, kept values standardised by themselves": replace(TTAC, own_statistics=True, own_input=True),
    "ttac, a mean square of 1 for the norm's input gradient": replace(TTAC, unit_input=True),
    "ttac, biases stay": replace(TTAC, biases=False),
    "ttac, gradients of running statistics": replace(TTAC, old_statistics=True),
}


class Layer:
    """What the formulas need of a layer: rules, kept fraction, elements of its input, running statistics."""

    def __init__(self, module: nn.Module, rules: Rules) -> None:
        self.module, self.rules, self.ratio, self.elements = module, rules, 1.0, 0
        if isinstance(module, nn.BatchNorm2d):
            self.mean, self.var = (each.clone() for each in (module.running_mean, module.running_var))

    def kept(self, x: Tensor) -> Tensor:
        """Return the largest magnitudes of `x`, and zeros."""
        self.elements = x.numel()
        count = int(x.numel() * self.ratio)
        flat = x.reshape(-1)
        places = flat.abs().topk(count, sorted=False)[1]
        return torch.zeros_like(flat).scatter_(0, places, flat[places]).view_as(x)


class Convolution(torch.autograd.Function):
    """The gradient of the input is exact, that of the weight reads kept values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
        ctx.save_for_backward(layer.kept(x), weight)
        ctx.layer = layer
        made: Tensor = layer.module._conv_forward(x, weight, bias)
        return made

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        conv = ctx.layer.module
        dx = torch.nn.grad.conv2d_input(x.shape, weight, g, conv.stride, conv.padding, conv.dilation, conv.groups)
        dw = torch.nn.grad.conv2d_weight(x, weight.shape, g, conv.stride, conv.padding, conv.dilation, conv.groups)
        return dx, dw, None if conv.bias is None else g.sum((0, 2, 3)), None


class Linear(torch.autograd.Function):
    """As `Convolution`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: Layer) -> Tensor:
        ctx.save_for_backward(layer.kept(x), weight)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return g @ weight, g.T @ x, g.sum(0), None


class Norm(torch.autograd.Function):
    """A norm with batch statistics, and gradients by the rules of the layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: Layer) -> Tensor:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        old = (layer.mean.clone(), layer.var.clone()) if layer.rules.old_statistics else (mean, var)
        count = x.numel() // len(mean)
        layer.mean.lerp_(mean, 0.1)
        layer.var.lerp_(var * count / (count - 1), 0.1)
        ctx.save_for_backward(x, layer.kept(x), weight, mean, var, *old)
        ctx.layer = layer
        return functional.batch_norm(x, None, None, weight, bias, True, 0.0, layer.module.eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, kept, weight, mean, var, old_mean, old_var = ctx.saved_tensors
        rules, eps = ctx.layer.rules, ctx.layer.module.eps

        def along(values: Tensor) -> Tensor:
            return values.view(1, -1, 1, 1)

        def standardised(values: Tensor, own: bool) -> Tensor:
            middle, spread = (mean, var) if not own else torch.var_mean(values, (0, 2, 3), correction=0)[::-1]
            return (values - along(middle)) / torch.sqrt(along(spread) + eps)

        stretch = torch.sqrt((var + eps) / (old_var + eps))
        offset = (mean - old_mean) / torch.sqrt(old_var + eps)
        dw = (g * (along(stretch) * standardised(kept, rules.own_statistics) + along(offset))).sum((0, 2, 3))
        h = standardised(x if rules.exact_input else kept, rules.own_input)
        if rules.unit_input:
            h = h / torch.sqrt(h.square().mean((0, 2, 3), keepdim=True) + 1e-12)
        rest = g - g.mean((0, 2, 3), keepdim=True) - h * (g * h).mean((0, 2, 3), keepdim=True)
        return along(weight * stretch / torch.sqrt(var + eps)) * rest, dw, g.sum((0, 2, 3)), None


FORMULAS = {nn.Conv2d: Convolution, nn.Linear: Linear, nn.BatchNorm2d: Norm}


def adapted(net: nn.Module, rules: Rules, stream: Stream, rate: float) -> tuple[float, float]:
    """Return the mean error in per cent over the stream, and the mean kept fraction; the net changes in place."""
    layers = {name: Layer(each, rules) for name, each in net.named_modules() if type(each) in FORMULAS}
    trained = []
    for layer in layers.values():
        rule, module = FORMULAS[type(layer.module)], layer.module
        module.forward = lambda x, rule=rule, m=module, own=layer: rule.apply(x, m.weight, m.bias, own)
        module.requires_grad_(True)
        trained += [module.weight, *([module.bias] if rules.biases and module.bias is not None else [])]
    optimizer, errors, shares = torch.optim.Adam(trained, rate), [], []
    for images, labels in stream:
        wrong = 0
        for start in range(0, len(labels), BATCH):
            x = images[start : start + BATCH]
            choose(net, layers, x, rules)
            logits = net(x)
            net.zero_grad()
            entropy(logits).backward()
            optimizer.step()
            wrong += int((logits.argmax(1).numpy() != labels[start : start + BATCH]).sum())
            elements = sum(layer.elements for layer in layers.values())
            shares.append(sum(layer.ratio * layer.elements for layer in layers.values()) / elements)
        errors.append(100 * wrong / len(labels))
    return float(np.mean(errors)), float(np.mean(shares))


def choose(net: nn.Module, layers: dict[str, Layer], x: Tensor, rules: Rules) -> None:
    """Set the kept fraction of each layer, by the share or by the importance: RMS gradient times -ln(own elements)."""
    for layer in layers.values():
        layer.ratio = 1.0 if rules.share is None else rules.share
    if rules.share is not None:
        return
    if not rules.stale:
        net.zero_grad()
    entropy(net(x[: rules.probe])).backward()
    total = sum(layer.elements for layer in layers.values())
    important = {
        name: float(layer.module.weight.grad.square().mean().sqrt()) * math.log(total / layer.elements)
        for name, layer in layers.items()
    }
    for name, layer in layers.items():
        layer.ratio = important[name] / max(important.values())


def entropy(logits: Tensor) -> Tensor:
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def streamed(samples: int, seed: int) -> Stream:
    """Return images and labels of each corruption, in an order of the seed."""
    random = np.random.default_rng(seed)
    with np.load(DEMO / "fashion_stream.npz") as file:
        orders = [(name, random.permutation(len(file["labels"]))[:samples]) for name in SHIFTS]
        return [
            (torch.from_numpy(file[name][rows].astype(np.float32) / np.float32(255)), file["labels"][rows])
            for name, rows in orders
        ]


def published_layers(net: nn.Module, checkouts: Path) -> dict[str, nn.Module]:
    """Put the published layers into the net, and return them by name."""
    sys.path.insert(0, str(checkouts / "SURGEON"))
    made: dict[str, nn.Module] = {}
    for name, old in list(net.named_modules()):
        if type(old) not in FORMULAS:
            continue
        file, kind = {nn.Conv2d: ("conv", "Conv2d"), nn.Linear: ("fc", "FC"), nn.BatchNorm2d: ("batch_norm", "Norm2d")}[
            type(old)
        ]
        published = getattr(__import__(f"autofreeze.{file}", fromlist=[kind]), f"AutoFreeze{kind}")
        if isinstance(old, nn.Conv2d):
            sizes = (old.in_channels, old.out_channels, old.kernel_size)
            made[name] = published(*sizes, old.stride, old.padding, old.dilation, old.groups, old.bias)
        elif isinstance(old, nn.Linear):
            made[name] = published(old.in_features, old.out_features, old.bias)
        else:
            made[name] = published(old.num_features, old.eps, old.momentum)
        made[name].load_state_dict(old.state_dict())
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, made[name])
    return made


def check(checkouts: Path) -> None:
    """Print how far the parameters of the formulas are from those of the published layers after two steps."""
    (images, labels), *_ = streamed(2 * BATCH, 0)
    mine, theirs = network("BatchNorm"), network("BatchNorm")
    before = {name: value.detach().clone() for name, value in mine.named_parameters()}
    adapted(mine, PUBLISHED, [(images, labels)], 1e-3)
    layers = published_layers(theirs.train(), checkouts)
    optimizer = torch.optim.Adam(theirs.parameters(), 1e-3)
    for x in images.split(BATCH):
        for layer in layers.values():
            layer.sparsity_signal = False
        entropy(theirs(x[: PUBLISHED.probe])).backward()
        sizes = {name: int(layer.activation_size) for name, layer in layers.items()}
        important = {
            name: float(layer.weight.grad.square().mean().sqrt()) * math.log(sum(sizes.values()) / sizes[name])
            for name, layer in layers.items()
        }
        for name, layer in layers.items():
            layer.sparsity_signal = True
            layer.clip_ratio = 1 - important[name] / max(important.values())
        optimizer.zero_grad()
        entropy(theirs(x)).backward()
        optimizer.step()
    after = dict(theirs.named_parameters())
    apart = torch.cat([(after[name] - value).abs().flatten() for name, value in mine.named_parameters()])
    moved = torch.cat([(after[name] - value).abs().flatten() for name, value in before.items()])
    print(f"mean difference {apart.mean():.1e}, largest {apart.max():.1e}; mean change {moved.mean():.1e}")


def main() -> None:
    """Print a row for each set of rules."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.surgeon_differences", description=__doc__)
    parser.add_argument("--check", type=Path, metavar="CHECKOUTS", help="compare with the published layers, and end")
    parser.add_argument("--samples", type=int, default=256, help="images of each corruption")
    parser.add_argument("--seeds", type=int, default=1, help="orders of the images")
    parser.add_argument("--share", type=float, help="kept fraction of every input")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of Adam")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.check:
        return check(asked.check)
    print("| rules | kept | error, % |\n|---|---:|---:|")
    for name in asked.rows:
        rules = replace(ROWS[name], share=asked.share)
        found = [
            adapted(network("BatchNorm"), rules, streamed(asked.samples, seed), asked.rate)
            for seed in range(asked.seeds)
        ]
        errors, shares = np.array(found).T
        spread = f" ± {errors.std(ddof=1):.2f}" if asked.seeds > 1 else ""
        print(f"| {name} | {shares.mean():.3f} | {errors.mean():.2f}{spread} |", flush=True)


if __name__ == "__main__":
    main()
