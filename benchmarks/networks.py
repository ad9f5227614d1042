"""The architectures of the benchmarks, as small torch definitions with random weights.

Layer shapes follow the papers: ResNet (arXiv:1512.03385), MobileNetV2 (arXiv:1801.04381), Wide ResNet
(arXiv:1605.07146), ResNeXt for 32x32 images (arXiv:1611.05431) and ViT-Tiny (arXiv:2010.11929, 2012.12877).  Time and
memory do not depend on the weights.  EfficientNet-B0 (arXiv:1905.11946), MobileNetV3 (arXiv:1905.02244) and
ConvNeXt-Atto (arXiv:2201.03545) are those of timm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional


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


def basic_blocks(stem: list[nn.Module], classes: int) -> nn.Module:
    """Four stages of two basic blocks."""
    layers, cin = list(stem), 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            layers.append(basic(cin, width, 2 if stage and not block else 1))
            cin = width
    return nn.Sequential(*layers, *head(512, classes))


def resnet18() -> nn.Module:
    return basic_blocks([*conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 1000)


def resnet18_32() -> nn.Module:
    """For images of 32x32: a stem that keeps their size."""
    return basic_blocks([*conv_norm(3, 64, 3), nn.ReLU()], 10)


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


def wide_resnet(depth: int, width: int, colours: int = 3) -> nn.Module:
    """Return a Wide ResNet for images of 32x32: `depth` layers, `width` times the channels of the narrowest."""
    layers: list[nn.Module] = [nn.Conv2d(colours, 16, 3, 1, 1, bias=False)]
    cin = 16
    for stage, channels in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            layers.append(PreActivation(cin, channels, 2 if stage and not block else 1))
            cin = channels
    return nn.Sequential(*layers, nn.BatchNorm2d(cin), nn.ReLU(), *head(cin, 10))


def resnext29() -> nn.Module:
    """Return ResNeXt-29 32x4d with the sizes of the CIFAR-100-C checkpoint: cardinality 4, base width 32."""
    layers: list[nn.Module] = [*conv_norm(3, 64, 3), nn.ReLU()]
    cin = 64
    for stage, width in enumerate((128, 256, 512)):
        for block in range(3):
            layers.append(bottleneck(cin, width, 2 * width, 2 if stage and not block else 1, groups=4))
            cin = 2 * width
    return nn.Sequential(*layers, *head(1024, 100))


class Attention(nn.Module):
    """Self-attention over all tokens, [N, T, width] -> [N, T, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        shape = (count, tokens, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(count, tokens, width))


class Encoder(nn.Module):
    """A transformer's block with its norms in front: attention, then a GELU layer four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """ViT of `depth` blocks on patches of `patch` pixels, with a class token."""

    def __init__(self, side: int, patch: int, width: int, heads: int, depth: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit_tiny() -> nn.Module:
    return VisionTransformer(side=224, patch=16, width=192, heads=3, depth=12, classes=1000)


def of_timm(name: str) -> Callable[[], nn.Module]:
    """Return the maker of a network of timm with random weights."""

    def make() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, exportable=True)
        return model

    return make


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (resnet18, 224),
    "resnet18_32": (resnet18_32, 32),
    "resnet50": (resnet50, 224),
    "mobilenet_v2": (mobilenet_v2, 224),
    "wrn28_10": (partial(wide_resnet, 28, 10), 32),
    "resnext29": (resnext29, 32),
    "vit_tiny": (vit_tiny, 224),
    "efficientnet_b0": (of_timm("efficientnet_b0"), 224),
    "mobilenet_v3": (of_timm("mobilenetv3_large_100"), 224),
    "convnext_atto": (of_timm("convnext_atto"), 224),
}
"""Maker and side of the images, by name."""
GROWING: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{f"wrn{depth}_2": (partial(wide_resnet, depth, 2), 32) for depth in (10, 16, 28, 40)},
    **{f"wrn16_{width}": (partial(wide_resnet, 16, width), 32) for width in (1, 4, 8)},
    **{f"wrn16_2_{side}": (partial(wide_resnet, 16, 2), side) for side in (16, 64, 128)},
}
"""The networks of `benchmarks.growth`."""


def build(name: str, seed: int = 0) -> tuple[nn.Module, int]:
    """Return the named network in eval mode with non-trivial statistics in its norms, and its image side in pixels."""
    torch.manual_seed(seed)
    maker, side = (NETWORKS | GROWING)[name]
    model = maker().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model, side
