"""Architectures the benchmarks time, as small torch definitions with random weights.

Layer shapes follow the papers: ResNet (arXiv:1512.03385), MobileNetV2 (arXiv:1801.04381), Wide ResNet
(arXiv:1605.07146) and ResNeXt for 32x32 images (arXiv:1611.05431).  Time and memory do not depend on the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def conv_norm(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(cout)]


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x)), the post-activation block of ResNet and ResNeXt."""

    def __init__(self, branch: nn.Sequential, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        same = stride == 1 and cin == cout
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_norm(cin, cout, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def basic(cin: int, width: int, stride: int) -> Residual:
    layers = [*conv_norm(cin, width, 3, stride), nn.ReLU(), *conv_norm(width, width, 3)]
    return Residual(nn.Sequential(*layers), cin, width, stride)


def bottleneck(cin: int, inner: int, cout: int, stride: int, groups: int = 1) -> Residual:
    layers = [*conv_norm(cin, inner, 1), nn.ReLU(), *conv_norm(inner, inner, 3, stride, groups), nn.ReLU()]
    return Residual(nn.Sequential(*layers, *conv_norm(inner, cout, 1)), cin, cout, stride)


def head(features: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [*conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    cin = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            layers.append(basic(cin, width, 2 if stage and not block else 1))
            cin = width
    return nn.Sequential(*layers, *head(512, 1000))


def resnet50() -> nn.Module:
    layers: list[nn.Module] = [*conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    cin = 64
    for stage, (width, depth) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
        for block in range(depth):
            layers.append(bottleneck(cin, width, 4 * width, 2 if stage and not block else 1))
            cin = 4 * width
    return nn.Sequential(*layers, *head(2048, 1000))


class Inverted(nn.Module):
    """MobileNetV2's inverted residual: expand, depthwise, project, and add when the shapes agree."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = cin * expand
        layers: list[nn.Module] = [] if expand == 1 else [*conv_norm(cin, inner, 1), nn.ReLU6()]
        layers += [*conv_norm(inner, inner, 3, stride, inner), nn.ReLU6(), *conv_norm(inner, cout, 1)]
        self.branch = nn.Sequential(*layers)
        self.adds = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.adds else self.branch(x)


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [*conv_norm(3, 32, 3, 2), nn.ReLU6()]
    cin = 32
    plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, cout, depth, stride in plan:
        for block in range(depth):
            layers.append(Inverted(cin, cout, 1 if block else stride, expand))
            cin = cout
    return nn.Sequential(*layers, *conv_norm(320, 1280, 1), nn.ReLU6(), *head(1280, 1000))


class PreActivation(nn.Module):
    """Wide ResNet's block: norm and ReLU before each convolution."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(cin), nn.BatchNorm2d(cout)
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        same = stride == 1 and cin == cout
        self.shortcut = None if same else nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm1(x))
        keep = x if self.shortcut is None else self.shortcut(z)
        return keep + self.conv2(torch.relu(self.norm2(self.conv1(z))))


def wrn28_10() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    cin = 16
    for stage, width in enumerate((160, 320, 640)):
        for block in range(4):
            layers.append(PreActivation(cin, width, 2 if stage and not block else 1))
            cin = width
    return nn.Sequential(*layers, nn.BatchNorm2d(640), nn.ReLU(), *head(640, 10))


def resnext29() -> nn.Module:
    """ResNeXt-29 32x4d as the CIFAR-100-C checkpoint has it: cardinality 4, base width 32."""
    layers: list[nn.Module] = [*conv_norm(3, 64, 3), nn.ReLU()]
    cin = 64
    for stage, width in enumerate((128, 256, 512)):
        for block in range(3):
            layers.append(bottleneck(cin, width, 2 * width, 2 if stage and not block else 1, groups=4))
            cin = 2 * width
    return nn.Sequential(*layers, *head(1024, 100))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (resnet18, 224),
    "resnet50": (resnet50, 224),
    "mobilenet_v2": (mobilenet_v2, 224),
    "wrn28_10": (wrn28_10, 32),
    "resnext29": (resnext29, 32),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, int]:
    """The named network in eval mode, its norms given non-trivial statistics, and its image side in pixels."""
    torch.manual_seed(seed)
    maker, side = NETWORKS[name]
    model = maker().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model, side
