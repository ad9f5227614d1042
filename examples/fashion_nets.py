"""The small classifiers that ship with ttac, as torch definitions: 28x28 grey images in [0, 1] to ten classes.

`ResNet` follows arXiv:1512.03385 (basic blocks, names as in torchvision), `VisionTransformer` arXiv:2010.11929
(pre-norm blocks, names as in timm).  Nothing is normalised at the input: the first layer learns its scale.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), convolutions without bias."""

    def __init__(self, cin: int, cout: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = norm(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = norm(cout)
        same = stride == 1 and cin == cout
        shortcut = [] if same else [nn.Conv2d(cin, cout, 1, stride, bias=False), norm(cout)]
        self.downsample = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, cin, H, W] -> [N, cout, H/stride, W/stride]."""
        branch = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(branch)) + self.downsample(x))


class ResNet(nn.Module):
    """Three stages of basic blocks at 28, 14 and 7 pixels; `norm` makes the layer after every convolution."""

    def __init__(self, norm: Norm = nn.BatchNorm2d, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(1, first, 3, 1, 1, bias=False)
        self.bn1 = norm(first)
        self.layer1 = nn.Sequential(BasicBlock(first, first, 1, norm))
        self.layer2 = nn.Sequential(BasicBlock(first, second, 2, norm), BasicBlock(second, second, 1, norm))
        self.layer3 = nn.Sequential(BasicBlock(second, third, 2, norm), BasicBlock(third, third, 1, norm))
        self.fc = nn.Linear(third, 10)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, 1, 28, 28] in [0, 1] -> logits [N, 10]."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def group_norm_resnet() -> ResNet:
    """The same net with GroupNorm of four groups, which adapts without batch statistics."""
    return ResNet(partial(nn.GroupNorm, 4))


class RotationResNet(ResNet):
    """A narrow group-norm net with a second head for the rotation of an image (Sun et al., arXiv:1909.13231).

    The rotation head has its own third stage.  Classifier and rotation head share all layers before.
    """

    def __init__(self) -> None:
        norm = partial(nn.GroupNorm, 4)
        super().__init__(norm, (12, 24, 48))
        self.rotation_layer3 = nn.Sequential(BasicBlock(24, 48, 2, norm), BasicBlock(48, 48, 1, norm))
        self.rotation_fc = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """x [N, 1, 28, 28] in [0, 1] -> logits [N, 10], and scores [N, 4] of turns by 0, 90, 180 and 270 degrees."""
        x = torch.relu(self.bn1(self.conv1(x)))
        shared = self.layer2(self.layer1(x))
        logits: Tensor = self.fc(self.layer3(shared).mean((2, 3)))
        rotation: Tensor = self.rotation_fc(self.rotation_layer3(shared).mean((2, 3)))
        return logits, rotation


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values from one matrix product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, tokens, width] -> the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        joined: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return joined


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer perceptron, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, tokens, width] -> the same shape."""
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class VisionTransformer(nn.Module):
    """Patches of 7x7 pixels, a class token, learned positions, pre-norm blocks."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4, patch: int = 7) -> None:
        super().__init__()
        tokens = (28 // patch) ** 2 + 1
        self.patch_embed = nn.Conv2d(1, width, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, 1, 28, 28] in [0, 1] -> logits [N, 10]."""
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        first = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat((first, patches), 1) + self.pos_embed
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits
