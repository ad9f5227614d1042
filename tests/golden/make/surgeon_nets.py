"""Write `tests/golden/surgeon_*.onnx` and `.safetensors`: three steps of SURGEON and DropIT in PyTorch, float64.

    python -m tests.golden.make.surgeon_nets

The rules are those of ttac.  Only norms learn.  The gradients of a norm, also of its input, come from the kept elements
of its input, with the statistics of the whole input and zeros in the other places.  The probe is the first samples of
the batch, with everything kept.  An input of less than 16 KiB is kept whole.

The kept input of a batch norm is its distance from the source's mean, which ttac subtracts in the convolution before.
The other norms keep their standardized input.  With `select=blocks`, kept blocks are rounded to 8 bits and the other
blocks are replaced by their mean.  Where a batch norm's input enters the gradient element by element, every block is
replaced by its mean, unless everything of every input is kept.  The approximation of a group norm's standardized input
is scaled to the mean square of this input in each group, where it multiplies a sum.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from benchmarks.pytorch_peers import entropy
from tests.support.surgeon_case import BATCH, CLASSES, GOLDEN, KINDS, LEAST, SETTINGS, SIDE, STEPS, inputs, method


class Pruned(torch.autograd.Function):
    """xhat*scale + bias with xhat = (x - mean)*r over some axes.

    The backward uses `summed` instead of xhat within sums, and `single` element by element.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        bias: Tensor,
        axes: tuple[int, ...],
        r: Tensor,
        summed: Tensor,
        single: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(summed, single, r, scale)
        ctx.axes = axes
        return (x - x.mean(axes, keepdim=True)) * r * scale + bias

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        summed, single, r, scale = ctx.saved_tensors
        h, axes = g * scale, ctx.axes
        dx = r * (h - h.mean(axes, keepdim=True) - single * (h * summed).mean(axes, keepdim=True))
        return dx, (g * summed).sum_to_size(scale.shape), g.sum_to_size(scale.shape), None, None, None, None


class Norm(nn.Module):
    """A batch, group or layer norm whose backward uses a fraction of its input."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain, self.share, self.elements = plain, 1.0, 0
        self.in_blocks, self.all_kept = False, True
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:
        self.elements = x[0].numel()
        shape, plain, scale, bias = x.shape, self.plain, self.weight, self.bias
        axes: tuple[int, ...] = (2,)
        if not isinstance(plain, nn.LayerNorm):
            groups = shape[1] if isinstance(plain, nn.BatchNorm2d) else plain.num_groups
            axes = (0, 2, 3, 4) if isinstance(plain, nn.BatchNorm2d) else (2, 3, 4)
            x = x.view(len(x), groups, -1, *shape[2:])
            scale, bias = (t.view(1, groups, -1, 1, 1) for t in (scale, bias))
        mean = x.mean(axes, keepdim=True)
        r = (x.var(axes, unbiased=False, keepdim=True) + plain.eps).rsqrt()
        if isinstance(plain, nn.BatchNorm2d):
            shift = plain.running_mean.view_as(scale)
            summed, single = ((kept + shift - mean) * r for kept in self.kept(x - shift))
        else:
            xhat = (x - mean) * r
            summed = single = self.kept(xhat)[0]
            if self.in_blocks and not isinstance(plain, nn.LayerNorm):
                single = summed * (xhat.square().mean(axes, keepdim=True) / summed.square().mean(axes, keepdim=True))
        return Pruned.apply(x, scale, bias, axes, r, summed, single).view(shape)

    def kept(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the approximations of x within sums, and element by element."""
        if not self.in_blocks or self.elements * BATCH * 4 < LEAST:
            return (self.prune(x),) * 2
        size = min(64, x.shape[-1]) if x.ndim == 3 else 64
        blocks = x.reshape(-1, size)
        count = math.floor(np.float32(self.share) * np.float32(len(blocks)))
        bounds = [number * len(blocks) // max(count, 1) for number in range(count + 1)]
        places = [a + number * 40503 % 65536 * (b - a) // 65536 for number, (a, b) in enumerate(pairwise(bounds))]
        means = blocks.mean(1, keepdim=True).repeat(1, size)
        step = blocks[places].abs().amax(1, keepdim=True) / 127
        summed = means.clone()
        summed[places] = (blocks[places] / step).round() * step
        return summed.view(x.shape), (summed if self.all_kept else means).view(x.shape)

    def prune(self, x: Tensor) -> Tensor:
        """Return the floor(share * elements) values with the largest magnitudes, and zeros elsewhere."""
        count = math.floor(np.float32(self.share) * np.float32(x.numel()))
        if self.elements * BATCH * 4 < LEAST or count >= x.numel():
            return x
        kept = torch.zeros_like(x).flatten()
        places = x.abs().flatten().topk(count).indices
        kept[places] = x.flatten()[places]
        return kept.view(x.shape)


class Residual(nn.Module):
    """relu(norm2(conv2(relu(norm1(conv1(x))))) + skip(x))."""

    def __init__(self, kind: str, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), norm(kind, cout)
        self.conv2, self.norm2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), norm(kind, cout)
        self.skip = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), norm(kind, cout))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))) + self.skip(x))


def norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(2, channels)


def network(kind: str) -> nn.Module:
    if kind == "layer":
        from tests.golden.make.adapted_nets import Transformer

        return Transformer()
    first = [nn.Conv2d(3, 8, 3, 1, 1, bias=False), norm(kind, 8), nn.ReLU()]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)]
    return nn.Sequential(*first, Residual(kind, 8, 8, 1), Residual(kind, 8, 16, 2), *last)


def built(kind: str) -> nn.Module:
    """Return a net with different norms, statistics of its inputs, and logits that are neither certain nor uniform."""
    torch.manual_seed(3)
    net = network(kind)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        x = torch.from_numpy(inputs(1)[0])
        for _ in range(60):
            net.train()(x)
        last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        logits = net.eval()(x)
        last.weight *= (factor := 2.0 / logits.std(0).mean())
        last.bias.copy_(-factor * (logits - last.bias).mean(0))
    return net.eval()


def norms_of(net: nn.Module) -> dict[str, Norm]:
    """Replace every norm by a pruning norm, and return these by name."""
    found = {}
    for name, plain in list(net.named_modules()):
        if isinstance(plain, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            parent, _, last = name.rpartition(".")
            found[name] = Norm(plain)
            setattr(net.get_submodule(parent), last, found[name])
    return found


def learn(net: nn.Module, x: Tensor, settings: dict[str, Any]) -> Tensor:
    """Return the logits, and set the gradients of the loss on the parameters."""
    logits: Tensor = net(x)
    entropies = entropy(logits)
    if settings.get("css"):
        bound = float(settings["margin"]) * math.log(CLASSES)
        certain = entropies < bound
        weights = (certain * torch.exp(bound - entropies)).detach()
        loss = (weights * entropies).sum() / certain.sum()
    else:
        loss = entropies.mean()
    loss.backward()
    return logits.detach()


def ratios(net: nn.Module, norms: dict[str, Norm], x: Tensor, keep: float) -> None:
    """Set the keep ratio of each norm by its importance on `x`."""
    for each in norms.values():
        each.share, each.all_kept, each.weight.grad, each.bias.grad = 1.0, True, None, None
    learn(net, x, {})
    sizes = np.array([each.elements for each in norms.values()], float)
    lengths = [float(each.weight.grad.square().mean().sqrt()) for each in norms.values()]  # type: ignore[union-attr]
    importance = np.array(lengths) * -np.log(sizes / sizes.sum())
    for each, value in zip(norms.values(), importance / importance.max() * keep, strict=True):
        each.share, each.all_kept = float(value), False


def trajectory(kind: str, run: str) -> Iterator[tuple[str, np.ndarray]]:
    net, settings = built(kind).double(), SETTINGS[run]
    norms = norms_of(net)
    for each in norms.values():
        each.in_blocks = settings["select"] == "blocks"
    tensors = [tensor for each in norms.values() for tensor in (each.weight, each.bias)]
    lr = float(settings["lr"])
    optimizer: Any = (
        torch.optim.SGD(tensors, lr, 0.9) if settings["optimizer"] == "sgd" else torch.optim.Adam(tensors, lr)
    )
    logits, shares = [], []
    for batch in inputs():
        x = torch.from_numpy(batch).double()
        if method(run) == "surgeon":
            ratios(net, norms, x[: int(settings["probe_samples"])], float(settings.get("keep", 1.0)))
        else:
            for each in norms.values():
                each.share = float(settings["keep"])
        optimizer.zero_grad()
        logits.append(learn(net, x, settings).numpy())
        optimizer.step()
        shares.append([each.share for each in norms.values()])
    yield "logits", np.stack(logits)
    for name, history in zip(norms, np.array(shares).T, strict=True):
        yield f"shares/{name}", history
    for name, each in norms.items():
        yield f"after/{name}.scale", each.weight.detach().numpy()
        yield f"after/{name}.bias", each.bias.detach().numpy()


def main() -> None:
    """Write both files of each kind."""
    torch.set_num_threads(1)
    for kind in KINDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                built(kind), (torch.randn(2, 3, SIDE, SIDE),), str(GOLDEN / f"surgeon_{kind}.onnx"), dynamo=False,
                training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, opset_version=17,
                input_names=["x"], output_names=["logits"], dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
            )  # fmt: skip
        found = {f"{run}/{name}": value for run in SETTINGS for name, value in trajectory(kind, run)}
        assert all(np.isfinite(value).all() for value in found.values()) and len(found["surgeon/logits"]) == STEPS
        made = {"made_by": f"tests/golden/make/surgeon_nets.py, torch {torch.__version__}"}
        save_file({name: np.ascontiguousarray(v, np.float32) for name, v in found.items()},
                  GOLDEN / f"surgeon_{kind}.safetensors", made)  # fmt: skip


if __name__ == "__main__":
    main()
