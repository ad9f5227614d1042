"""TENT (arXiv:2006.10726) and its two baselines in a few lines of PyTorch, for comparisons with ttac.

`source` keeps the stored statistics, `bn` normalises with the statistics of the batch, and `tent` also takes one
entropy step on the norms' scale and shift per batch.  All errors are those of logits computed before the step.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import torch
from fashion_nets import ResNet
from torch import Tensor, nn


def net_from_onnx(path: Path) -> ResNet:
    """Return the shipped BatchNorm net in eval mode with the weights of the unfolded ONNX file.

    Raises RuntimeError when the file lacks a weight, as the folded file does.
    """
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in onnx.load(path).graph.initializer}
    net = ResNet()
    state = net.state_dict()
    weights = {name: torch.from_numpy(array) for name, array in arrays.items() if name in state}
    counters = {name: value for name, value in state.items() if name.endswith("num_batches_tracked")}
    net.load_state_dict(weights | counters)
    return net.eval()


def as_input(images: np.ndarray) -> Tensor:
    """Return uint8 images [N, 1, 28, 28] as float32 in [0, 1]."""
    return torch.from_numpy(images.astype(np.float32) / np.float32(255))


def use_batch_statistics(net: nn.Module) -> nn.Module:
    """Remove every BatchNorm's stored statistics, so that it normalises with the batch's mean and biased variance."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
    return net.eval()


def norm_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return scale and shift of every BatchNorm by name; all other parameters stop requiring gradients."""
    net.requires_grad_(False)
    trained = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.requires_grad_(True)
            trained[f"{name}.weight"], trained[f"{name}.bias"] = layer.weight, layer.bias
    return trained


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of the predictions in nats, from logits [N, C]."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def tent_step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """Take one entropy step on x, and return the logits [N, C] from before this step."""
    logits: Tensor = net(x)
    optimizer.zero_grad()
    torch.autograd.backward(entropy(logits))
    optimizer.step()
    return logits.detach()


def error(logits: Iterable[Tensor], labels: Tensor) -> float:
    """Return the per cent of wrong predictions on a stream."""
    return 100 * float((torch.cat(list(logits)).argmax(1) != labels).float().mean())


def scores(path: Path, images: np.ndarray, labels: np.ndarray, batch: int = 64, lr: float = 1e-3) -> dict[str, float]:
    """Return the errors in per cent of source, bn and tent (Adam) on one stream, each from the shipped weights."""
    batches, truth = torch.split(as_input(images), batch), torch.from_numpy(labels.astype(np.int64))
    with torch.no_grad():
        source, adapted = net_from_onnx(path), use_batch_statistics(net_from_onnx(path))
        result = {"source": error(map(source, batches), truth), "bn": error(map(adapted, batches), truth)}
    net = use_batch_statistics(net_from_onnx(path))
    optimizer = torch.optim.Adam(norm_parameters(net).values(), lr)
    result["tent"] = error([tent_step(net, optimizer, x) for x in batches], truth)
    return result


def calibrate(net: nn.Module, x: Tensor) -> None:
    """Set every BatchNorm's stored statistics to the mean and biased variance of its input on x.

    The layers follow in forward order, so that each reads its input from layers that are final.  The computation is in
    float64, so that the stored float32 values are exact to rounding.
    """
    exact = net.double().eval()
    for layer in [layer for layer in exact.modules() if isinstance(layer, nn.BatchNorm2d)]:
        seen: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _layer, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            for part in torch.split(x.double(), 64):
                exact(part)
        handle.remove()
        values = torch.cat(seen)
        layer.running_mean = values.mean((0, 2, 3)).float().double()
        layer.running_var = values.var((0, 2, 3), correction=0).float().double()
    net.float()
