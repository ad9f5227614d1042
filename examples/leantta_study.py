"""Chooses the defaults of `leantta` on one half of the shipped images, and compares methods one image at a time.

    python examples/leantta_study.py choose     # error over (tau, lambda, distance) and over norms, first half
    python examples/leantta_study.py report     # every method at batch 1, second half; abrupt and gradual shifts
    python examples/leantta_study.py ordered    # `lame` on mixed and on sorted batches, second half
    python examples/leantta_study.py why        # how far samples are from the source, clean and corrupted
    python examples/leantta_study.py clean --data /usr/share/datasets/fashion-mnist     # 8976 more clean images

Prints Markdown, which `docs/leantta-study.md` keeps.  The images are those of `fashion_stream.npz`: 512 for the choice
and the other 512 for the report, each clean and under seven corruptions.  The last part needs the test files of
Fashion-MNIST, of which the stream holds the first 1024 images (Debian package `dataset-fashion-mnist`).
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import ttac

DEMO = Path(ttac.__file__).resolve().parent / "demo"
NET = DEMO / "fashion_resnet_bn_unfolded.onnx"
HALF = 512
ALLOWED, CHANGED = 0.5, 2.0
"""Largest rise of the clean error in points, and largest per cent of clean predictions that change.

One image of 512 is 0.2 points, so a choice by the rise alone would be luck.
"""
TAUS, LAMBDAS, DISTANCES = (0.0, 0.25, 0.5, 0.75, 0.9), (0.1, 0.25, 0.5, 1.0, 2.0), ("sum", "mean")
RIVALS: dict[str, tuple[str, dict[str, Any]]] = {
    "source": ("source", {}),
    "bn": ("bn", {}),
    "bn, prior 1": ("bn", {"statistics": "blend", "prior": 1.0}),
    "bn, prior 16": ("bn", {"statistics": "blend"}),
    "tent": ("tent", {"guard": "off"}),
    "tent, prior 16": ("tent", {"statistics": "blend", "guard": "off"}),
    "lame": ("lame", {}),
    "leantta": ("leantta", {}),
}
SHARES = (0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25)

Streams = dict[str, np.ndarray]
Step = Callable[[np.ndarray], np.ndarray]


def read(part: slice) -> tuple[Streams, np.ndarray]:
    """Images [n, 1, 28, 28] in [0, 1] by corruption, `clean` first, and their labels."""
    with np.load(DEMO / "fashion_stream.npz") as file:
        names = [name for name in file.files if name not in ("labels", "about")]
        return {name: file[name][part].astype(np.float32) / np.float32(255) for name in names}, file["labels"][part]


def adapter(folder: Path, method: str, batch: int, settings: Mapping[str, Any], train: str = "norms") -> ttac.Adapter:
    """Compile a bundle of the shipped net and load it."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        path = Path(fresh) / "bundle.ttac"
        ttac.compile(NET, method=method, batch=batch, output=path, settings=settings, train=train)
        return ttac.load(path, threads=1)


def error(step: Step, images: np.ndarray, labels: np.ndarray, batch: int) -> float:
    """Return the per cent of wrong answers, each computed before the update of its step."""
    parts = range(0, len(images), batch)
    wrong = sum(int((step(images[i : i + batch]).argmax(1) != labels[i : i + batch]).sum()) for i in parts)
    return 100 * wrong / len(images)


def predictions(chosen: ttac.Adapter, images: np.ndarray) -> np.ndarray:
    """Return the likeliest class of each image."""
    parts = range(0, len(images), chosen.batch)
    return np.concatenate([chosen.step(images[i : i + chosen.batch]).argmax(1) for i in parts])


def errors(chosen: ttac.Adapter, streams: Streams, labels: np.ndarray) -> dict[str, float]:
    """Return the error on each stream, with a reset before each."""
    found = {}
    for name, images in streams.items():
        chosen.reset()
        found[name] = error(chosen.step, images, labels, chosen.batch)
    return found


def mean(found: Mapping[str, float]) -> float:
    """Return the mean over the corruptions."""
    return float(np.mean([value for name, value in found.items() if name != "clean"]))


def choose(folder: Path) -> None:
    """Print the grids over tau, lambda and the form of the distance, then over norms and the other readings.

    The method adapts each sample alone, so batches of 64 change the time only.
    """
    streams, labels = read(slice(0, HALF))
    with np.load(DEMO / "fashion_calibration.npz") as file:
        clean = np.concatenate([streams["clean"], file["images"].astype(np.float32) / np.float32(255)])
    plain = adapter(folder, "source", 64, {})
    source, expected = errors(plain, streams, labels), predictions(plain, clean)
    print(f"source: mean {mean(source):.1f}, clean {source['clean']:.1f}")
    best: tuple[float, str] = (np.inf, "none")
    for distance in DISTANCES:
        print(f"\n`distance={distance}`\n\n| tau | " + " | ".join(f"lambda {power:g}" for power in LAMBDAS) + " |")
        print("|---|" + "---|" * len(LAMBDAS))
        for tau in TAUS:
            cells = []
            for power in LAMBDAS:
                chosen = adapter(folder, "leantta", 64, {"tau": tau, "lambda": power, "distance": distance})
                found = errors(chosen, streams, labels)
                rise = found["clean"] - source["clean"]
                changed = 100 * float(np.mean(predictions(chosen, clean) != expected))
                allowed = rise <= ALLOWED and changed <= CHANGED
                cells.append(f"{mean(found):.1f} ({rise:+.1f}, {changed:.1f})" + ("*" if allowed else ""))
                if allowed and mean(found) < best[0]:
                    best = mean(found), f"tau {tau:g}, lambda {power:g}, {distance}"
            print(f"| {tau:g} | " + " | ".join(cells) + " |", flush=True)
    print(f"\nlowest of those allowed: {best[1]}, mean {best[0]:.1f}\n")
    sites(folder, streams, labels, source["clean"])


def sites(folder: Path, streams: Streams, labels: np.ndarray, clean: float) -> None:
    """Print the defaults at some of the norms, and the other readings at all norms."""
    print("| norms | " + " | ".join(name for name in streams if name != "clean") + " | mean | clean |")
    print("|---|" + "---|" * (len(streams) + 1))
    variants: list[tuple[str, dict[str, Any], str]] = [
        *((f"`--train {some}`", {}, some) for some in ("first:1", "first:3", "first:5", "last:5", "norms")),
        ("`metric=squared`", {"metric": "squared"}, "norms"),
        ("`variance=unbiased`", {"variance": "unbiased"}, "norms"),
        ("`lambda=1e6`, the first blend alone", {"lambda": 1e6}, "norms"),
        ("the same, `--train first:3`, `tau=0`", {"lambda": 1e6, "tau": 0.0}, "first:3"),
    ]
    for title, settings, train in variants:
        found = errors(adapter(folder, "leantta", 64, settings, train), streams, labels)
        cells = [f"{found[name]:.1f}" for name in streams if name != "clean"]
        print(f"| {title} | {' | '.join(cells)} | {mean(found):.1f} | {found['clean'] - clean:+.1f} |", flush=True)


def report(folder: Path) -> None:
    """Print every method, one image at a time, on images that took no part in a choice."""
    streams, labels = read(slice(HALF, 2 * HALF))
    print("| method | " + " | ".join(streams) + " | mean | abrupt | gradual |")
    print("|---|" + "---:|" * (len(streams) + 3))
    for title, (method, settings) in RIVALS.items():
        chosen = adapter(folder, method, 1, settings)
        found = errors(chosen, streams, labels)
        shifts = [shifting(chosen, streams, labels, shares) for shares in ((1.0,) * len(SHARES), SHARES)]
        cells = [*found.values(), mean(found), *shifts]
        print(f"| {title} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)


def shifting(chosen: ttac.Adapter, streams: Streams, labels: np.ndarray, shares: tuple[float, ...]) -> float:
    """Return the error over all corruptions one after the other without a reset.

    Consecutive parts of the images have the mixing fractions `shares` of corruption.
    """
    chosen.reset()
    wrong: list[float] = []
    for name, images in streams.items():
        if name == "clean":
            continue
        for share, rows in zip(shares, np.array_split(np.arange(len(images)), len(shares)), strict=True):
            mixed = streams["clean"][rows] * np.float32(1 - share) + images[rows] * np.float32(share)
            wrong += [error(chosen.step, mixed[i : i + 1], labels[rows[i] : rows[i] + 1], 1) for i in range(len(rows))]
    return float(np.mean(wrong))


def why(folder: Path) -> None:
    """Print distances of single images from the source's statistics at some norms, for clean and corrupted images.

    A distance is the mean over the channels of (mean of the image - source mean)^2/source variance.  The table holds
    the median over the images, and the fraction of images farther than 95 % of the clean images.
    """
    streams, _ = read(slice(0, HALF))
    model = onnx.load(NET)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    norms = [norms[0], norms[len(norms) // 2], norms[-1]]
    model.graph.output.extend(onnx.ValueInfoProto(name=node.input[0]) for node in norms)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    print("| stream | " + " | ".join(f"{held[node.input[1]].size} channels" for node in norms) + " |")
    print("|---|" + "---|" * len(norms))
    limits: list[float] = []
    for name, images in streams.items():
        found = session.run([node.input[0] for node in norms], {"x": images})
        means = [values.mean(axis=(2, 3)) for values in found]
        far = [
            np.mean((mean - held[node.input[3]]) ** 2 / held[node.input[4]], axis=1)
            for mean, node in zip(means, norms, strict=True)
        ]
        limits = limits or [float(np.quantile(distances, 0.95)) for distances in far]
        pairs = zip(far, limits, strict=True)
        cells = [f"{np.median(distances):.2f}, {np.mean(distances > limit):.0%}" for distances, limit in pairs]
        print(f"| {name} | " + " | ".join(cells) + " |")


def ordered(folder: Path) -> None:
    """Print `lame` on batches of 64, mixed and sorted by class, on the second half."""
    streams, labels = read(slice(HALF, 2 * HALF))
    by_class = np.argsort(labels, kind="stable")
    print("| method | order | " + " | ".join(streams) + " | mean |\n|---|---|" + "---:|" * (len(streams) + 1))
    for affinity in ("", "rbf", "knn"):
        chosen = adapter(folder, "lame" if affinity else "source", 64, {"affinity": affinity} if affinity else {})
        for title, order in (("mixed", np.arange(len(labels))), ("by class", by_class)):
            found = errors(chosen, {name: images[order] for name, images in streams.items()}, labels[order])
            cells = " | ".join(f"{cell:.1f}" for cell in [*found.values(), mean(found)])
            print(f"| {f'lame, `affinity={affinity}`' if affinity else 'source'} | {title} | {cells} |", flush=True)


def clean(folder: Path, data: Path) -> None:
    """Print the clean error of source and leantta on the test images outside the stream."""
    first = 2 * HALF
    images, labels = (
        np.frombuffer(gzip.decompress((data / name).read_bytes()), np.uint8, offset=header)
        for name, header in (("t10k-images-idx3-ubyte.gz", 16), ("t10k-labels-idx1-ubyte.gz", 8))
    )
    x, truth = images.reshape(-1, 1, 28, 28)[first:].astype(np.float32) / np.float32(255), labels[first:]
    for method in ("source", "leantta"):
        found = 100 * float(np.mean(predictions(adapter(folder, method, 64, {}), x) != truth))
        print(f"{method}: {found:.2f} % of {len(x)}")


def main() -> None:
    parts = {"choose": choose, "report": report, "ordered": ordered, "why": why}
    parser = argparse.ArgumentParser(description="Defaults of leantta, and methods at batch 1.")
    parser.add_argument("part", choices=[*parts, "clean"])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.part == "clean":
            clean(Path(folder), asked.data)
        else:
            parts[asked.part](Path(folder))


if __name__ == "__main__":
    main()
