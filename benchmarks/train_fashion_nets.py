"""Train nets on the images of Fashion-MNIST: `python -m benchmarks.train_fashion_nets wide FILE`.

`small` has three convolutions with batch norms: the net of `benchmarks.long_streams`, a step of `tent` in about 3 ms of
processor time.  `wide` is WRN-16-2 (arXiv:1605.07146), for `benchmarks.official_errors --wide FILE`.  `--images` is a
folder with the files of Debian's `dataset-fashion-mnist`.  Minutes of processor time for `small`, an hour for `wide`.

The committed small net comes from an earlier version with another augmentation.  Whoever replaces it measures the
errors of `docs/guard.md` again.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.networks import wide_resnet

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
BATCH = 128


def layer(inside: int, outside: int, stride: int) -> nn.Sequential:
    """A convolution, a batch norm and a ReLU."""
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())


class Net(nn.Module):
    """Images [N, 1, 28, 28] in [0, 1] -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(layer(1, 16, 2), layer(16, 32, 2), layer(32, 48, 1))
        self.fc = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.body(x).mean((2, 3)))
        return scores


def read(file: Path, header: int) -> torch.Tensor:
    """The bytes of a gzipped IDX file after its header."""
    return torch.from_numpy(np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header).copy())


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Images as float32 in [0, 1], each shifted by up to two pixels, half of the batches flipped."""
    top, left = torch.randint(-2, 3, (2,)).tolist()
    moved = torch.roll(images, (top, left), (2, 3))
    return (moved.flip(3) if torch.rand(()) < 0.5 else moved).float() / 255


def trained(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Module:
    """The net after training with SGD and a one-cycle learning rate."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=2e-4)
    total = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total + 1)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            loss = functional.cross_entropy(net(augmented(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "small": (Net, 8),
    "wide": (partial(wide_resnet, 16, 2, colours=1), 4),
}
"""Maker and epochs of each net."""


def main() -> None:
    """Train the net, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_fashion_nets", description=__doc__)
    parser.add_argument("net", choices=list(NETS))
    parser.add_argument("file", type=Path)
    parser.add_argument("--images", type=Path, default=DEBIAN, metavar="FOLDER")
    parser.add_argument("--samples", type=int, default=60000)
    asked = parser.parse_args()
    torch.manual_seed(0)
    images = read(asked.images / "train-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[: asked.samples]
    labels = read(asked.images / "train-labels-idx1-ubyte.gz", 8).long()[: asked.samples]
    make, epochs = NETS[asked.net]
    net = trained(make(), images, labels, epochs)
    axes, norms = {name: {0: "N"} for name in ("images", "logits")}, torch.onnx.TrainingMode.PRESERVE
    names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": axes}
    torch.onnx.export(net, (torch.zeros(1, 1, 28, 28),), asked.file, **names, dynamo=False, training=norms)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
