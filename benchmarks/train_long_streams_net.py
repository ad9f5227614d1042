"""Train the net of `benchmarks.long_streams`: `python -m benchmarks.train_long_streams_net [FOLDER]`.

Three convolutions with batch norms classify the images of Fashion-MNIST; FOLDER holds the files of Debian's
`dataset-fashion-mnist`.  A step of `tent` takes about 3 ms of processor time.  Ten minutes on a busy machine.

The committed net comes from an earlier version with another augmentation.  A run replaces the net, and then the errors
in `docs/guard.md` must be measured again.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.long_streams import NET

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
EPOCHS, BATCH = 8, 128


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


def trained(images: torch.Tensor, labels: torch.Tensor) -> Net:
    """The net after training with SGD and a one-cycle learning rate."""
    net = Net().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=2e-4)
    total = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total + 1)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            loss = functional.cross_entropy(net(augmented(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()


def main() -> None:
    """Train the net, and write the file."""
    torch.manual_seed(0)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN
    images = read(folder / "train-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    net = trained(images, read(folder / "train-labels-idx1-ubyte.gz", 8).long())
    axes, norms = {name: {0: "N"} for name in ("images", "logits")}, torch.onnx.TrainingMode.PRESERVE
    names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": axes}
    torch.onnx.export(net, (torch.zeros(1, 1, 28, 28),), NET, **names, dynamo=False, training=norms)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
