"""Small forms of architectures that users adapt, with a few thousand weights: same operators and joints, fewer of each.

Blocks follow the papers: ResNet (arXiv:1512.03385), Wide ResNet (1605.07146), ResNeXt (1611.05431), MobileNetV2
(1801.04381) and V3 (1905.02244), EfficientNet (1905.11946), RegNet (2003.13678), DenseNet (1608.06993), ShuffleNetV2
(1807.11164).  `make_models.py` exports them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 7
Module = Callable[[], nn.Module]


def conv_norm(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution without bias, and its norm."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(cout)]


def head(features: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, CLASSES)]


class Residual(nn.Module):
    """last(branch(x) + shortcut(x))."""

    def __init__(self, branch: list[nn.Module], cin: int, cout: int, stride: int = 1, last: Module = nn.ReLU) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        same = stride == 1 and cin == cout
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_norm(cin, cout, 1, stride))
        self.last = last()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.branch(x) + self.shortcut(x))
        return y


def basic(cin: int, width: int, stride: int = 1) -> Residual:
    return Residual([*conv_norm(cin, width, 3, stride), nn.ReLU(), *conv_norm(width, width)], cin, width, stride)


def bottleneck(
    cin: int, inner: int, cout: int, stride: int = 1, groups: int = 1, squeeze: list[nn.Module] | None = None
) -> Residual:
    branch = [*conv_norm(cin, inner, 1), nn.ReLU(), *conv_norm(inner, inner, 3, stride, groups), nn.ReLU()]
    return Residual([*branch, *(squeeze or []), *conv_norm(inner, cout, 1)], cin, cout, stride)


class SqueezeExcite(nn.Module):
    """x times a gate per channel: gate(expand(activation(reduce(mean of x))))."""

    def __init__(self, channels: int, inner: int, activation: Module, gate: Module) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.activation, self.gate = activation(), gate()

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(x, 1)
        gated: Tensor = x * self.gate(self.expand(self.activation(self.reduce(pooled))))
        return gated


def inverted(
    cin: int,
    inner: int,
    cout: int,
    kernel: int,
    stride: int,
    activation: Module,
    squeeze: list[nn.Module] | None = None,
) -> nn.Module:
    """Expand, depthwise, optionally squeeze and excite, project; added to x when the shapes are equal."""
    branch = [*conv_norm(cin, inner, 1), activation(), *conv_norm(inner, inner, kernel, stride, inner), activation()]
    branch += [*(squeeze or []), *conv_norm(inner, cout, 1)]
    same = stride == 1 and cin == cout
    return Residual(branch, cin, cout, last=nn.Identity) if same else nn.Sequential(*branch)


def resnet() -> nn.Module:
    layers = [*conv_norm(3, 8), nn.ReLU(), basic(8, 8), basic(8, 16, 2)]
    return nn.Sequential(*layers, *head(16))


def resnet_bottleneck() -> nn.Module:
    stem = [*conv_norm(3, 8, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, bottleneck(8, 6, 24), bottleneck(24, 8, 32, 2), *head(32))


class PreActivation(nn.Module):
    """Norm and ReLU before each convolution."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(cin), nn.BatchNorm2d(cout)
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.shortcut = None if cin == cout else nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm1(x))
        keep = x if self.shortcut is None else self.shortcut(z)
        return keep + self.conv2(torch.relu(self.norm2(self.conv1(z))))


def wide_resnet() -> nn.Module:
    blocks = [PreActivation(6, 12, 1), PreActivation(12, 12, 1), PreActivation(12, 16, 2)]
    return nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1, bias=False), *blocks, nn.BatchNorm2d(16), nn.ReLU(), *head(16))


def resnext() -> nn.Module:
    blocks = [bottleneck(8, 16, 16, groups=4), bottleneck(16, 16, 24, 2, groups=4)]
    return nn.Sequential(*conv_norm(3, 8), nn.ReLU(), *blocks, *head(24))


def mobilenet_v2() -> nn.Module:
    blocks = [inverted(8, 16, 8, 3, 1, nn.ReLU6), inverted(8, 24, 12, 3, 2, nn.ReLU6)]
    return nn.Sequential(*conv_norm(3, 8, 3, 2), nn.ReLU6(), *blocks, *conv_norm(12, 24, 1), nn.ReLU6(), *head(24))


def mobilenet_v3() -> nn.Module:
    def squeeze(channels: int) -> list[nn.Module]:
        return [SqueezeExcite(channels, 6, nn.ReLU, nn.Hardsigmoid)]

    blocks = [
        inverted(8, 16, 8, 3, 1, nn.ReLU, squeeze(16)),
        inverted(8, 24, 12, 5, 2, nn.Hardswish, squeeze(24)),
    ]
    stem = [*conv_norm(3, 8, 3, 2), nn.Hardswish()]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 16), nn.Hardswish(), nn.Linear(16, CLASSES)]
    return nn.Sequential(*stem, *blocks, *conv_norm(12, 24, 1), nn.Hardswish(), *last)


def efficientnet() -> nn.Module:
    def squeeze(channels: int) -> list[nn.Module]:
        return [SqueezeExcite(channels, 4, nn.SiLU, nn.Sigmoid)]

    blocks = [inverted(8, 16, 8, 3, 1, nn.SiLU, squeeze(16)), inverted(8, 24, 12, 5, 2, nn.SiLU, squeeze(24))]
    return nn.Sequential(*conv_norm(3, 8, 3, 2), nn.SiLU(), *blocks, *conv_norm(12, 24, 1), nn.SiLU(), *head(24))


def regnet() -> nn.Module:
    def squeeze() -> list[nn.Module]:
        return [SqueezeExcite(16, 4, nn.ReLU, nn.Sigmoid)]

    first, second = (bottleneck(cin, 16, 16, stride, 2, squeeze()) for cin, stride in ((8, 2), (16, 1)))
    return nn.Sequential(*conv_norm(3, 8, 3, 2), nn.ReLU(), first, second, *head(16))


class DenseLayer(nn.Module):
    """x and a few new features of x, concatenated."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(cin), nn.BatchNorm2d(2 * growth)
        self.conv1 = nn.Conv2d(cin, 2 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(inner)))], 1)


def densenet() -> nn.Module:
    first = [DenseLayer(8, 4), DenseLayer(12, 4)]
    halve = [nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False), nn.AvgPool2d(2)]
    second = [DenseLayer(8, 4), DenseLayer(12, 4), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*conv_norm(3, 8), nn.ReLU(), *first, *halve, *second, *head(16))


class ShuffleUnit(nn.Module):
    """One half of the channels through the branch, both halves concatenated, then interleaved."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        half = cout // 2
        self.splits = stride == 1
        taken = cin // 2 if self.splits else cin
        branch = [*conv_norm(taken, half, 1), nn.ReLU(), *conv_norm(half, half, 3, stride, half)]
        self.branch = nn.Sequential(*branch, *conv_norm(half, half, 1), nn.ReLU())
        beside = [*conv_norm(cin, cin, 3, stride, cin), *conv_norm(cin, half, 1), nn.ReLU()]
        self.beside = nn.Identity() if self.splits else nn.Sequential(*beside)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.splits else (x, x)
        joined = torch.cat([self.beside(left), self.branch(right)], 1)
        batch, channels, height, width = joined.shape
        interleaved = joined.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return interleaved.reshape(batch, channels, height, width)


def shufflenet() -> nn.Module:
    units = [ShuffleUnit(8, 16, 2), ShuffleUnit(16, 16, 1), ShuffleUnit(16, 16, 1)]
    return nn.Sequential(*conv_norm(3, 8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *units, *head(16))


def signal() -> nn.Module:
    """Return a net along one axis, as for accelerometers or sound; it ends in a norm of [N, C]."""
    layers = [nn.Conv1d(4, 12, 5, padding=2, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.MaxPool1d(2)]
    layers += [nn.Conv1d(12, 16, 3, 2, padding=2, dilation=2), nn.BatchNorm1d(16), nn.LeakyReLU(0.1), nn.AvgPool1d(2)]
    layers += [nn.Flatten(), nn.Linear(16 * 4, 16), nn.BatchNorm1d(16), nn.ELU(), nn.Linear(16, CLASSES)]
    return nn.Sequential(*layers)


def volume() -> nn.Module:
    """Return a net over three axes, as for scans or clips."""
    layers = [nn.Conv3d(1, 6, 3, padding=1, bias=False), nn.BatchNorm3d(6), nn.ReLU(), nn.AvgPool3d(2)]
    layers += [nn.Conv3d(6, 10, 3, 2, padding=1, bias=False), nn.BatchNorm3d(10), nn.GELU()]
    layers += [nn.Conv3d(10, 12, (1, 3, 3), padding=(0, 1, 1), bias=False), nn.BatchNorm3d(12), nn.Softplus()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, CLASSES))


class Hourglass(nn.Module):
    """Down and up again, twice: transposed convolution and interpolation, each joined with the value before."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(*conv_norm(8, 12, 3, 2), nn.PReLU(12))
        self.inner = nn.Sequential(*conv_norm(12, 12, 3, 2), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"))
        self.up = nn.Sequential(nn.ConvTranspose2d(24, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Tanh())
        self.group = nn.GroupNorm(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        low = self.down(x)
        joined = self.up(torch.cat([low, self.inner(low)], 1))
        grouped: Tensor = self.group(torch.cat([x, joined], 1))
        return grouped


def hourglass() -> nn.Module:
    last = [*conv_norm(16, 16, 1), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)]
    return nn.Sequential(*conv_norm(3, 8), nn.ReLU(), Hourglass(), *last)


class Attention(nn.Module):
    """Self-attention with two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.joined, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.joined(x).reshape(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        weights = (parts[0] @ parts[1].transpose(-2, -1) / (width / 2) ** 0.5).softmax(-1)
        mixed: Tensor = self.out((weights @ parts[2]).transpose(1, 2).reshape(batch, tokens, width))
        return mixed


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each after a norm and added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class Transformer(nn.Module):
    """Patches of 4x4 pixels, a class token, two blocks (arXiv:2010.11929)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(TransformerBlock(width), TransformerBlock(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(x.shape[0], -1, -1), patches], 1) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


IMAGE = (3, 16, 16)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (resnet, IMAGE),
    "resnet_bottleneck": (resnet_bottleneck, (3, 32, 32)),
    "wide_resnet": (wide_resnet, IMAGE),
    "resnext": (resnext, IMAGE),
    "mobilenet_v2": (mobilenet_v2, IMAGE),
    "mobilenet_v3": (mobilenet_v3, IMAGE),
    "efficientnet": (efficientnet, IMAGE),
    "regnet": (regnet, IMAGE),
    "densenet": (densenet, IMAGE),
    "shufflenet": (shufflenet, IMAGE),
    "hourglass": (hourglass, IMAGE),
    "transformer": (Transformer, IMAGE),
    "signal": (signal, (4, 32)),
    "volume": (volume, (1, 8, 8, 8)),
}
"""Name -> (definition, shape of a sample)."""
