"""Long streams: how far adaptation drifts from the source, with and without the options that bound the drift.

    python -m benchmarks.drift --method tent --steps 6000 --set source_weight=0.01
    python -m benchmarks.drift --method tent --steps 2000 --stream hostile

`harmless` draws batches of 16 from clean images and seven corruptions in turn.  `hostile` draws 30 % clean batches, and
noise, constants, shuffled pixels, one class, negated, offset, denormal and huge images otherwise.  Errors are those of
`predict` with the state at hand, on 1,024 clean images and as the mean over the corruptions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import ttac
from ttac.settings import split_assignments

DEMO = Path(ttac.__file__).resolve().parent / "demo"
BATCH = 16
Draw = Callable[[np.random.Generator, int], np.ndarray]


def main() -> None:
    """Print one JSON line for each moment of the stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="fashion_resnet_bn")
    parser.add_argument("--method", default="tent")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--every", type=int, default=1000, help="steps between two measurements")
    parser.add_argument("--stream", choices=("harmless", "hostile"), default="harmless")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    images, labels = data()
    draw = harmless(images) if asked.stream == "harmless" else hostile(images, labels)
    random = np.random.default_rng(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        bundle = compiled(asked, Path(folder))
        adapter = ttac.load(bundle, threads=1)
        start = time.perf_counter()
        for step in range(asked.steps + 1):
            if step % asked.every == 0:
                report(asked, adapter, images, labels, step, time.perf_counter() - start)
            adapter.step(draw(random, step))


def compiled(asked: argparse.Namespace, folder: Path) -> Path:
    """The bundle of the net and the method, planned for the stream's batches."""
    ttac.compile(
        DEMO / f"{asked.net}.onnx",
        method=asked.method,
        batch=BATCH,
        calibration=DEMO / "fashion_calibration.npz",
        settings=split_assignments(asked.set),
        output=folder / "b.ttac",
    )
    return folder / "b.ttac"


def data() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Images float32 [1024, 1, 28, 28] by corruption, and their labels."""
    with np.load(DEMO / "fashion_stream.npz", allow_pickle=False) as arrays:
        images = {name: arrays[name].astype(np.float32) / 255 for name in arrays.files if arrays[name].ndim == 4}
        return images, arrays["labels"]


def harmless(images: dict[str, np.ndarray]) -> Draw:
    """Batches of the clean images and of each corruption in turn."""
    names = list(images)

    def draw(random: np.random.Generator, step: int) -> np.ndarray:
        chosen = images[names[step % len(names)]]
        return chosen[random.choice(len(chosen), BATCH, replace=False)]

    return draw


def hostile(images: dict[str, np.ndarray], labels: np.ndarray) -> Draw:
    """30 % clean batches; the others are broken in one of ten ways."""
    clean = images["clean"]
    kinds: list[Draw] = [
        lambda random, x: random.standard_normal(x.shape, dtype=np.float32),
        lambda random, x: np.full_like(x, random.random()),
        lambda random, x: random.permuted(x.reshape(BATCH, -1), axis=1).reshape(x.shape),
        lambda random, x: random.choice(clean[labels == random.integers(10)], BATCH),
        lambda random, x: x[:1],
        lambda random, x: 1 - x,
        lambda random, x: x + 3,
        lambda random, x: x * np.float32(1e-40),
        lambda random, x: x * np.float32(1e6),
        lambda random, x: random.random(x.shape, dtype=np.float32) * 255,
    ]

    def draw(random: np.random.Generator, step: int) -> np.ndarray:
        x = clean[random.choice(len(clean), BATCH, replace=False)]
        if random.random() < 0.3:
            return x
        return np.ascontiguousarray(kinds[random.integers(len(kinds))](random, x), np.float32)

    return draw


def report(
    asked: argparse.Namespace,
    adapter: ttac.Adapter,
    images: dict[str, np.ndarray],
    labels: np.ndarray,
    step: int,
    seconds: float,
) -> None:
    """Print the errors in per cent with the state at hand."""
    errors = {name: error(adapter, x, labels) for name, x in images.items()}
    clean = errors.pop("clean")
    row = {"method": asked.method, "set": asked.set, "stream": asked.stream, "step": step, "clean": round(clean, 2)}
    row |= {"corrupted": round(float(np.mean(list(errors.values()))), 2), "seconds": round(seconds, 1)}
    print(json.dumps(row), flush=True)


def error(adapter: ttac.Adapter, x: np.ndarray, labels: np.ndarray) -> float:
    """Per cent of the images whose class `predict` misses."""
    logits = np.concatenate([adapter.predict(x[i : i + BATCH]) for i in range(0, len(x), BATCH)])
    return 100 * float(np.mean(logits.argmax(1) != labels))


if __name__ == "__main__":
    sys.exit(main())
