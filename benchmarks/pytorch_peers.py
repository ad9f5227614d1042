"""The methods in PyTorch, written from the formulas of their papers, for comparisons and parity tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (
    *BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
)  # fmt: skip


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy H(p) per sample in nats, [N], from logits [N, C]."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def use_batch_statistics(model: nn.Module) -> nn.Module:
    """Make every batch norm normalise with the statistics of the batch, also in eval mode; in place."""
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return model.eval()


def norm_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return scale and bias of every norm by their names in the model."""
    return {
        f"{prefix}.{name}": parameter
        for prefix, module in model.named_modules()
        if isinstance(module, NORMS)
        for name, parameter in module.named_parameters(recurse=False)
    }


class Source:
    """The source model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    def step(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of images [N, ...]."""
        with torch.no_grad():
            logits: Tensor = self.model(images)
        return logits


class BatchStatistics(Source):
    """Prediction-time batch normalisation (arXiv:2006.10963): every batch norm uses the statistics of the batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(use_batch_statistics(model))


class Tent:
    """TENT (arXiv:2006.10726): entropy minimisation over the norms' scale and bias, batch statistics in the forward."""

    def __init__(
        self, model: nn.Module, optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None
    ) -> None:
        self.model = use_batch_statistics(model).requires_grad_(False)
        self.parameters = norm_parameters(self.model)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        trained = list(self.parameters.values())
        self.optimizer = optimizer(trained) if optimizer else torch.optim.Adam(trained, lr=1e-3)

    def step(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of images [N, ...], computed before the update of this step."""
        self.optimizer.zero_grad()
        logits: Tensor = self.model(images)
        entropy(logits).mean().backward()
        self.optimizer.step()
        return logits.detach()


class Eata:
    """EATA (arXiv:2204.02610): reliable and non-redundant samples, weighted, with a Fisher anchor.

    `calibration` are source samples for the anchor, 64 at a time; without samples the method is ETA.
    """

    def __init__(
        self, model: nn.Module, *, lr: float, margin: float, redundancy: float, fisher: float = 0.0,
        calibration: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.model = use_batch_statistics(model).requires_grad_(False)
        self.parameters = norm_parameters(self.model)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.SGD(list(self.parameters.values()), lr=lr, momentum=0.9)
        self.margin, self.redundancy, self.fisher = margin, redundancy, fisher
        self.average: Tensor | None = None
        self.source = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.anchor = {} if calibration is None or not fisher else self.information(calibration)

    def information(self, images: Tensor) -> dict[str, Tensor]:
        """Return the mean over batches of the squared gradient of the cross-entropy to the most likely class."""
        batches = images.split(64)
        total = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        for batch in batches:
            logits = self.model(batch)
            loss = functional.cross_entropy(logits, logits.argmax(1))
            for name, gradient in zip(total, torch.autograd.grad(loss, list(self.parameters.values())), strict=True):
                total[name] += gradient**2
        return {name: value / len(batches) for name, value in total.items()}

    def step(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of images [N, ...], computed before the update of this step."""
        self.optimizer.zero_grad()
        logits: Tensor = self.model(images)
        losses, p = entropy(logits), logits.softmax(1).detach()
        limit = self.margin * math.log(logits.shape[1])
        chosen = losses.detach() < limit
        if self.average is not None:
            chosen &= functional.cosine_similarity(self.average[None], p, dim=1).abs() < self.redundancy
        if chosen.any():
            mean = p[chosen].mean(0)
            self.average = mean if self.average is None else 0.9 * self.average + 0.1 * mean
            loss = (losses[chosen] * (limit - losses[chosen].detach()).exp()).mean()
            for name, information in self.anchor.items():
                loss = loss + self.fisher * (information * (self.parameters[name] - self.source[name]) ** 2).sum()
            loss.backward()
            self.optimizer.step()
        return logits.detach()


class Sar:
    """SAR (arXiv:2302.12400), with the paper's recovery of parameters, momentum and average."""

    def __init__(
        self, model: nn.Module, *, lr: float, margin: float = 0.4, rho: float = 0.05, threshold: float = 0.2,
        untrained: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.model = use_batch_statistics(model).requires_grad_(False)
        self.parameters = {
            name: value
            for name, value in norm_parameters(self.model).items()
            if name.rpartition(".")[0] not in untrained
        }
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.lr, self.margin, self.rho, self.threshold = lr, margin, rho, threshold
        self.source = [value.detach().clone() for value in self.parameters.values()]
        self.average = 0.0
        self.recoveries = 0
        self.optimizer = self.fresh()

    def fresh(self) -> torch.optim.Optimizer:
        """Return a new optimizer without momentum of earlier steps."""
        return torch.optim.SGD(list(self.parameters.values()), lr=self.lr, momentum=0.9)

    def step(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of images [N, ...], computed before the update of this step."""
        trained = list(self.parameters.values())
        logits: Tensor = self.model(images)
        losses = entropy(logits)
        limit = self.margin * math.log(logits.shape[1])
        first = losses.detach() < limit
        if not first.any():
            return logits.detach()
        gradients = torch.autograd.grad(losses[first].mean(), trained)
        length = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
        before = [value.detach().clone() for value in trained]
        with torch.no_grad():
            for value, gradient in zip(trained, gradients, strict=True):
                value += self.rho * gradient / (length + 1e-12)
        again = entropy(self.model(images))
        second = first & (again.detach() < limit)
        loss = again[second].mean()
        gradients = torch.autograd.grad(loss, trained) if second.any() else ()
        self.place(before)
        if second.any():
            for value, gradient in zip(trained, gradients, strict=True):
                value.grad = gradient
            self.optimizer.step()
            self.follow(float(loss.detach()), logits.shape[1])
        return logits.detach()

    def follow(self, loss: float, classes: int) -> None:
        """Average the loss, and restore the source below the threshold, which is for 1000 classes."""
        self.average = 0.9 * self.average + 0.1 * loss if self.average else loss
        if self.average < self.threshold * math.log(classes) / math.log(1000):
            self.place(self.source)
            self.optimizer, self.average = self.fresh(), 0.0
            self.recoveries += 1

    def place(self, values: Iterable[Tensor]) -> None:
        """Give the trained tensors these values."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters.values(), values, strict=True):
                parameter.copy_(value)


class PrunedNorm(torch.autograd.Function):
    """A batch norm whose scale learns from the kept part of its input; the gradient of its input is exact.

    The fraction `keep` of the values with the largest magnitudes is kept; a dropped value adds nothing to the sum.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor, eps: float, keep: float) -> Tensor:
        """Return the normalised x [N, C, H, W], same shape."""
        variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
        root = (variance + eps).rsqrt()
        normal = (x - mean) * root
        kept = int(keep * x.numel())
        mask = torch.zeros(x.numel(), dtype=x.dtype)
        mask[x.abs().flatten().topk(kept).indices] = 1
        ctx.save_for_backward(normal, root, scale, mask.view_as(x))
        return normal * scale.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, scale and bias."""
        (dy,), (normal, root, scale, mask) = gradients, ctx.saved_tensors
        axes = (0, 2, 3)
        means = dy.mean(axes, keepdim=True) + normal * (dy * normal).mean(axes, keepdim=True)
        dx = scale.view(1, -1, 1, 1) * root * (dy - means)
        return dx, (dy * normal * mask).sum(axes), dy.sum(axes), None, None


class SurgeonNorm(nn.Module):
    """A batch norm with batch statistics that keeps a fraction of its input for the gradient of the scale."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.keep, self.elements = 1.0, 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised x [N, C, H, W], same shape."""
        self.elements = x[0].numel()
        y: Tensor = PrunedNorm.apply(x, self.weight, self.bias, self.eps, self.keep)
        return y


class Surgeon:
    """SURGEON (arXiv:2503.20354) with entropy and Adam: a dense probe sets the keep ratio of each norm."""

    def __init__(self, model: nn.Module, *, lr: float = 1e-3, probe: int = 1) -> None:
        self.model = with_norms(model.eval().requires_grad_(False))
        self.norms = [module for module in self.model.modules() if isinstance(module, SurgeonNorm)]
        self.parameters = [value for norm in self.norms for value in (norm.weight, norm.bias)]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr)
        self.probe = probe

    def step(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of images [N, ...], computed before the update of this step."""
        for norm in self.norms:
            norm.keep = 1.0
        loss = entropy(self.model(images[: self.probe])).mean()
        gradients = torch.autograd.grad(loss, [norm.weight for norm in self.norms])
        strength = torch.stack([gradient.square().mean().sqrt() for gradient in gradients])
        sizes = torch.tensor([float(norm.elements) for norm in self.norms])
        importance = strength * -torch.log(sizes / sizes.sum())
        highest = float(importance.max())
        for norm, value in zip(self.norms, importance, strict=True):
            norm.keep = float(value) / highest if highest > 0 else 1.0
        self.optimizer.zero_grad()
        logits: Tensor = self.model(images)
        entropy(logits).mean().backward()
        self.optimizer.step()
        return logits.detach()


def with_norms(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d of the model by a `SurgeonNorm`, in place, and return the model."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, SurgeonNorm(child))
        else:
            with_norms(child)
    return model
