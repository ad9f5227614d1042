"""Write the data of `ttac/demo/`: five small classifiers, calibration images and a corrupted stream.

    python examples/train_fashion.py [--data FOLDER] [--out FOLDER] [--only PART]

Needs torch, onnxscript, corrupt-tta 0.1.7 (for the stream) and the Fashion-MNIST files, for example from Debian's
`dataset-fashion-mnist`.  `--threads 1` on a busy machine took 19 minutes; `examples/README.md` has the results.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from fashion_corruptions import CORRUPTIONS, corrupted, described
from fashion_nets import ResNet, RotationResNet, VisionTransformer, group_norm_resnet
from plain_tent import calibrate, net_from_onnx, scores
from torch import Tensor, nn
from torch.nn import functional

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
DEMO = Path(__file__).resolve().parent.parent / "ttac" / "demo"
STREAM, CALIBRATION = "fashion_stream.npz", "fashion_calibration.npz"
UNFOLDED = "fashion_resnet_bn_unfolded.onnx"
CALIBRATION_IMAGES, STREAM_IMAGES, BATCH = 512, 1024, 128


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The training of one net: SGD with Nesterov momentum, or AdamW, under a one-cycle learning rate."""

    build: Callable[[], nn.Module]
    epochs: int
    lr: float
    decay: float  # of matrices and kernels only, never of norms and biases
    adam: bool = False
    warm: bool = False  # begins with the weights of the BatchNorm net, which must exist
    shift: int = 2  # largest shift of a training image, in pixels
    rotation: bool = False  # also learns the rotation of turned images, with a second output


RECIPES = {
    "fashion_resnet_bn": Recipe(build=ResNet, epochs=6, lr=0.1, decay=5e-4),
    "fashion_resnet_gn": Recipe(build=group_norm_resnet, epochs=3, lr=2e-3, decay=0.05, adam=True, warm=True),
    "fashion_vit": Recipe(build=VisionTransformer, epochs=10, lr=2e-3, decay=0.05, adam=True),
    "fashion_rotation": Recipe(build=RotationResNet, epochs=8, lr=4e-3, decay=0.05, adam=True, shift=4, rotation=True),
}


def idx(path: Path, header: int) -> np.ndarray:
    """Return the bytes of a gzipped IDX file after its header, uint8 [length]."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def fashion(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N, 1, 28, 28] and labels uint8 [N] of `train` or `t10k`."""
    images = idx(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    return images, idx(folder / f"{part}-labels-idx1-ubyte.gz", 8)


def augmented(images: Tensor, shift: int) -> Tensor:
    """Return uint8 images [N, 1, 28, 28] as float32 in [0, 1], randomly shifted by up to `shift` pixels and flipped."""
    count = len(images)
    padded = functional.pad(images, (shift,) * 4)[:, 0]
    top, left = torch.randint(0, 2 * shift + 1, (2, count, 1))
    pixels = torch.arange(28)
    columns = torch.where(torch.rand(count, 1) < 0.5, left + pixels, left + pixels.flip(0))
    picked = padded[torch.arange(count)[:, None, None], (top + pixels)[:, :, None], columns[:, None, :]]
    return picked[:, None].float() / 255


def training_loss(net: nn.Module, recipe: Recipe, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of the classes, and that of the random turns of the same images if the net has them."""
    if not recipe.rotation:
        return functional.cross_entropy(net(x), y)
    turns = torch.randint(0, 4, (len(x),))
    turned = torch.stack([torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(x, turns, strict=True)])
    turned = turned.contiguous(memory_format=torch.channels_last)
    return functional.cross_entropy(net(x)[0], y) + functional.cross_entropy(net(turned)[1], turns)


def optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return parameter groups with weight decay for every tensor with more than one axis."""
    parameters = list(net.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.adam:
        return torch.optim.AdamW(groups, recipe.lr)
    return torch.optim.SGD(groups, recipe.lr, momentum=0.9, nesterov=True)


def in_order(net: nn.Module, order: torch.memory_format) -> nn.Module:
    """Store the kernels of the net in this order; convolutions train twice as fast with channels last."""
    return net.to(memory_format=order)  # type: ignore[call-overload, no-any-return]


def untrained(recipe: Recipe, out: Path) -> nn.Module:
    """Return the untrained net, always with the same weights, and seed the generator of the training."""
    torch.manual_seed(0)
    net = recipe.build()
    if recipe.warm:
        learned = net_from_onnx(out / UNFOLDED).state_dict()
        net.load_state_dict({name: learned[name] for name in net.state_dict()})
    return net


def trained(net: nn.Module, recipe: Recipe, images: np.ndarray, labels: np.ndarray) -> nn.Module:
    """Train the net for its epochs, print a line per epoch, and return the net in eval mode."""
    net = in_order(net, torch.channels_last).train()
    x, y = torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))
    steps, started = len(x) // BATCH, time.monotonic()
    update = optimizer(net, recipe)
    schedule = torch.optim.lr_scheduler.OneCycleLR(update, recipe.lr, recipe.epochs * steps, pct_start=0.2)
    for epoch in range(recipe.epochs):
        order, total = torch.randperm(len(x)), 0.0
        for rows in torch.split(order[: steps * BATCH], BATCH):
            batch = augmented(x[rows], recipe.shift).contiguous(memory_format=torch.channels_last)
            loss = training_loss(net, recipe, batch, y[rows])
            update.zero_grad()
            torch.autograd.backward(loss)
            update.step()
            schedule.step()
            total += loss.item()
        print(f"  epoch {epoch + 1}: loss {total / steps:.3f}, {time.monotonic() - started:.0f} s", flush=True)
    return net.eval()


def export(net: nn.Module, path: Path, fold: bool = True) -> None:
    """Write the net with PyTorch's default exporter; with `fold=False`, optimize=False keeps the norms.

    Only the source lines of whoever ran this script are removed from the file.
    """
    batch = torch.export.Dim("N")
    program = torch.onnx.export(
        in_order(net, torch.contiguous_format),
        (torch.rand(2, 1, 28, 28),),
        input_names=["x"],
        output_names=["logits", "rotation"][: 1 + isinstance(net, RotationResNet)],
        dynamic_shapes={"x": {0: batch}},
        dynamo=True,
        optimize=fold,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if not entry.key.endswith(("stack_trace", "fx_node"))]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def test_error(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the per cent of wrong predictions of the ONNX file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wrong = 0
    for first in range(0, len(images), 500):
        rows = slice(first, first + 500)
        logits = session.run(["logits"], {"x": images[rows].astype(np.float32) / np.float32(255)})[0]
        wrong += int((logits.argmax(1) != labels[rows]).sum())
    return 100 * wrong / len(images)


def make_calibration(data: Path, out: Path) -> Tensor:
    """Write training images without labels, and return them as float32 in [0, 1]."""
    images, _ = fashion(data, "train")
    rows = np.random.default_rng(0).choice(len(images), CALIBRATION_IMAGES, replace=False)
    np.savez_compressed(out / CALIBRATION, images=images[np.sort(rows)])
    return torch.from_numpy(images[np.sort(rows)].astype(np.float32) / np.float32(255))


def make_net(name: str, data: Path, out: Path) -> None:
    """Train and export one net; the BatchNorm net gets its statistics from the calibration images before the export."""
    print(name)
    recipe = RECIPES[name]
    net = trained(untrained(recipe, out), recipe, *fashion(data, "train"))
    if name == "fashion_resnet_bn":
        calibrate(net, make_calibration(data, out))
        export(net, out / UNFOLDED, fold=False)
    export(net, out / f"{name}.onnx")
    print(f"  test error {test_error(out / f'{name}.onnx', *fashion(data, 't10k')):.2f} %", flush=True)


def make_stream(data: Path, out: Path) -> None:
    """Write the first test images, clean and corrupted, with their labels; the array `about` is a description."""
    images, labels = (part[:STREAM_IMAGES] for part in fashion(data, "t10k"))
    streams = {"clean": images} | {each.name: corrupted(images, each) for each in CORRUPTIONS}
    about = f"Fashion-MNIST test images 0..{STREAM_IMAGES - 1} (MIT licence); {described()}"
    np.savez_compressed(out / STREAM, allow_pickle=False, **streams, labels=labels, about=np.array(about))


def table(out: Path) -> None:
    """Print the errors of source, bn and tent per corruption as a Markdown table."""
    print("| stream | source | bn | tent |\n|---|---|---|---|")
    with np.load(out / STREAM) as stream:
        names = [name for name in stream.files if name not in ("labels", "about")]
        rows = {name: scores(out / UNFOLDED, stream[name], stream["labels"]) for name in names}
    corruptions = [row for name, row in rows.items() if name != "clean"]
    rows["mean of corruptions"] = {key: float(np.mean([row[key] for row in corruptions])) for key in corruptions[0]}
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in row.values()) + " |")


def main() -> None:
    """Run the parts of `--only`, all by default."""
    parts: dict[str, Callable[[Path, Path], object]] = {"stream": make_stream}
    parts |= {name: partial(make_net, name) for name in RECIPES}
    parts["table"] = lambda _data, out: table(out)
    parser = argparse.ArgumentParser(description="Train the demo models of ttac and make their data.")
    parser.add_argument("--data", type=Path, default=DEBIAN, help="folder of the four gzipped IDX files")
    parser.add_argument("--out", type=Path, default=DEMO)
    parser.add_argument("--only", choices=parts, action="append", help="may occur more than once")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    for part in asked.only or parts:
        parts[part](asked.data, asked.out)


if __name__ == "__main__":
    main()
