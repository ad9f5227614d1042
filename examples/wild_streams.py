"""Errors of source, TENT and SAR on corrupted streams where batch statistics fail.

    python examples/wild_streams.py [--images 500] [--set lr=0.001]

Three nets (batch, group and layer norms), three orders of the same corrupted images: shuffled in batches of 16,
shuffled one at a time, and sorted by label in batches of 16.  Prints a Markdown table; a cell is the error in % over
all corruptions, with a reset before each.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import ttac
from ttac.settings import split_assignments

DEMO = Path(ttac.__file__).resolve().parent / "demo"
NETS = {"BatchNorm": "fashion_resnet_bn_unfolded", "GroupNorm": "fashion_resnet_gn", "ViT (LayerNorm)": "fashion_vit"}
METHODS = ("source", "tent", "sar")
ORDERS = {"batches of 16": (16, False), "one at a time": (1, False), "sorted by label": (16, True)}

Streams = dict[str, tuple[np.ndarray, np.ndarray]]


def read_streams(count: int) -> Streams:
    """Return, per corruption, `count` images [n, 1, 28, 28] in [0, 1] in one shuffled order, and their labels."""
    with np.load(DEMO / "fashion_stream.npz") as file:
        labels = file["labels"]
        order = np.random.RandomState(0).permutation(len(labels))[:count]
        names = [name for name in file.files if name not in ("labels", "clean", "about")]
        return {name: (as_input(file[name][order]), labels[order]) for name in names}


def as_input(images: np.ndarray) -> np.ndarray:
    """Return grey bytes as the input of the nets."""
    return np.ascontiguousarray(images.reshape(-1, 1, 28, 28), np.float32) / np.float32(255)


def error(adapter: ttac.Adapter, streams: Streams, batch: int, by_label: bool) -> float:
    """Return the fraction of wrong answers, each computed before the update on its batch."""
    wrong = total = 0
    for images, labels in streams.values():
        adapter.reset()
        order = np.argsort(labels, kind="stable") if by_label else np.arange(len(labels))
        for start in range(0, len(order) - len(order) % batch, batch):
            rows = order[start : start + batch]
            wrong += int((adapter.step(images[rows]).argmax(1) != labels[rows]).sum())
            total += len(rows)
    return wrong / total


def main() -> None:
    parser = argparse.ArgumentParser(description="Source, TENT and SAR where batch statistics fail.")
    parser.add_argument("--images", type=int, default=500, help="per corruption")
    parser.add_argument("--set", action="append", default=[], help="an option of SAR, name=value")
    asked = parser.parse_args()
    streams = read_streams(asked.images)
    print(f"{len(streams)} corruptions, {asked.images} images each\n")
    print("| net | order | " + " | ".join(METHODS) + " |\n|---|---|" + "---:|" * len(METHODS))
    with tempfile.TemporaryDirectory() as folder:
        for title, net in NETS.items():
            for order, (batch, by_label) in ORDERS.items():
                cells = []
                for method in METHODS:
                    path = Path(folder) / f"{net}-{method}-{batch}.ttac"
                    settings = {} if method == "source" else {"guard": "off"}
                    settings |= split_assignments(asked.set) if method == "sar" else {}
                    if not path.exists():
                        ttac.compile(DEMO / f"{net}.onnx", method=method, batch=batch, output=path, settings=settings)
                    cells.append(f"{100 * error(ttac.load(path, threads=1), streams, batch, by_label):.1f}")
                print(f"| {title} | {order} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
