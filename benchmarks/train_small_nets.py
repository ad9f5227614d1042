"""Train the small reader and the small detector of `benchmarks/small_nets`: `python -m benchmarks.train_small_nets`.

Both hold batch norms.  The reader gives log-probabilities [T, N, C], as CTC losses want them; the detector gives
[N, 4 + C, boxes], as YOLO detectors do.  Half an hour of processor time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.drawn import CHARACTERS, SHAPES, SIDE, lines, shapes

FOLDER = Path(__file__).parent / "small_nets"
STRIDE = 8
"""Pixels between two boxes of the detector."""


def layer(inside: int, outside: int, stride: int | tuple[int, int] = 1) -> nn.Sequential:
    """A convolution, a batch norm and a ReLU."""
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())


class Reader(nn.Module):
    """Lines [N, 1, 32, 128] -> log-probabilities [32, N, 37]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            layer(1, 24, 2), layer(24, 32, 2), layer(32, 48), layer(48, 64, (2, 1)),
            layer(64, 80), layer(80, 80, (2, 1)),
        )  # fmt: skip
        self.near = nn.Sequential(nn.Conv1d(160, 80, 3, padding=1, bias=False), nn.BatchNorm1d(80), nn.ReLU())
        self.scores = nn.Linear(80, len(CHARACTERS) + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = self.near(self.body(x).flatten(1, 2))
        return F.log_softmax(self.scores(frames.permute(2, 0, 1)), 2)


class Detector(nn.Module):
    """Images [N, 3, 128, 128] -> [N, 7, 256]: centre, width and height in pixels, and the scores of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            layer(3, 16, 2), layer(16, 32, 2), layer(32, 48), layer(48, 64, 2),
            layer(64, 64), layer(64, 64), layer(64, 64),
        )  # fmt: skip
        self.boxes, self.scores = nn.Conv2d(64, 4, 1), nn.Conv2d(64, len(SHAPES), 1)
        nn.init.constant_(self.scores.bias, -4.0)  # type: ignore[arg-type]
        middle = (torch.arange(SIDE // STRIDE) + 0.5) * STRIDE
        self.register_buffer("centres", torch.stack(torch.meshgrid(middle, middle, indexing="xy")).flatten(1)[None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x)
        shift, size = self.boxes(features).flatten(2).split(2, 1)
        boxes = [self.centres + shift * STRIDE, torch.exp(size) * 32]
        return torch.cat([*boxes, torch.sigmoid(self.scores(features).flatten(2))], 1)


def batches(draw: object, steps: int, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of a set that is drawn once, in another order in each round."""
    images, labels = draw(64 * size, seed=100)  # type: ignore[operator]
    random = np.random.default_rng(0)
    for step in range(steps):
        rows = random.permutation(len(images))[:size] if step % 2 else random.integers(0, len(images), size)
        x = images[rows].astype(np.float32) / 255
        x += random.normal(0, 0.01, x.shape).astype(np.float32)
        yield torch.from_numpy(x), torch.from_numpy(labels[rows])


def reader_loss(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of connectionist temporal classification."""
    lengths = (labels >= 0).sum(1)
    frames = torch.full((len(labels),), output.shape[0])
    return F.ctc_loss(output, labels.clamp(min=0), frames, lengths, zero_infinity=True)


def detector_loss(output: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """The box at the centre of each object learns its place and class; all other boxes learn scores of zero."""
    count = SIDE // STRIDE
    wanted, weight, places = torch.zeros_like(output[:, 4:]), torch.ones_like(output[:, 4:]), []
    for image, own in enumerate(boxes):
        for kind, x, y, width, height in own[own[:, 0] >= 0].tolist():
            column, row = min(int(x // STRIDE), count - 1), min(int(y // STRIDE), count - 1)
            near = [(r, c) for r in range(row - 1, row + 2) for c in range(column - 1, column + 2)]
            for place in (r * count + c for r, c in near if 0 <= r < count and 0 <= c < count):
                weight[image, int(kind), place] = 0
            wanted[image, int(kind), row * count + column] = 1
            weight[image, :, row * count + column] = 1
            places.append((image, row * count + column, x, y, width, height))
    scores = F.binary_cross_entropy(output[:, 4:].clamp(1e-6, 1 - 1e-6), wanted, reduction="none")
    hard = (output[:, 4:].detach() - wanted).abs() ** 1.5
    image, place, *target = (torch.tensor(each) for each in zip(*places, strict=True))
    found = output[image, :4, place]
    aim = torch.stack(target, 1)
    overlap = ((found[:, :2] - aim[:, :2]).abs() / STRIDE).mean() + (found[:, 2:] / aim[:, 2:]).log().abs().mean() * 2
    return (scores * hard * weight).sum() / len(places) + 0.5 * overlap


def train(net: nn.Module, draw: object, loss: object, steps: int, size: int) -> None:
    """Train with AdamW and one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3, weight_decay=1e-2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step, (x, labels) in enumerate(batches(draw, steps, size)):
        value = loss(net(x), labels)  # type: ignore[operator]
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        cycle.step()
        if step % 100 == 0:
            print(type(net).__name__, step, round(float(value), 3), flush=True)


def export(net: nn.Module, x: torch.Tensor, name: str, axis: int) -> None:
    """Write the net with its norms; a reader lists its characters, as the files of PaddleOCR do."""
    path = FOLDER / f"{name}.onnx"
    torch.onnx.export(
        net, (x,), str(path), dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        opset_version=17, input_names=["image"], output_names=["output"],
        dynamic_axes={"image": {0: "N"}, "output": {axis: "N"}},
    )  # fmt: skip
    model = onnx.load(path)
    if axis:
        model.metadata_props.add(key="character", value="\n".join(CHARACTERS))
    onnx.save(model, path)
    print(path, path.stat().st_size, flush=True)


def main() -> None:
    """Train the nets that are named on the command line, by default both."""
    chosen = sys.argv[1:] or ["reader", "detector"]
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name, build, draw, loss, steps, size, axis in (
        ("reader", Reader, lines, reader_loss, 2000, 48, 1),
        ("detector", Detector, shapes, detector_loss, 1500, 32, 0),
    ):
        if name in chosen:
            torch.manual_seed(0)
            net = build()
            train(net, draw, loss, steps, size)
            export(net.eval(), torch.from_numpy(draw(2, seed=1)[0].astype(np.float32) / 255), name, axis)


if __name__ == "__main__":
    main()
