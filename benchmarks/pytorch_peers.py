"""Plain PyTorch re-statements of the methods, from their formulas: the other side of comparisons and parity tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def entropy(logits: Tensor) -> Tensor:
    """H(p) per sample in nats; logits [N, C] -> [N]."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def use_batch_statistics(model: nn.Module) -> nn.Module:
    """Make every batch norm normalise with the statistics of the batch, in eval mode too; in place."""
    for module in model.modules():
        if isinstance(module, NORMS):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return model.eval()


def norm_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Scale and bias of every batch norm, by their names in the model."""
    return {
        f"{prefix}.{name}": parameter
        for prefix, module in model.named_modules()
        if isinstance(module, NORMS)
        for name, parameter in module.named_parameters(recurse=False)
    }


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
        """images [N, ...] -> logits [N, C] from before the update that the step makes."""
        self.optimizer.zero_grad()
        logits: Tensor = self.model(images)
        entropy(logits).mean().backward()
        self.optimizer.step()
        return logits.detach()
