"""Do ttac's methods and their re-statements in PyTorch make the same errors?  `python -m benchmarks.agreement`

The shipped BatchNorm net on the shipped corrupted images: the same batches in the same order, each corruption from the
model as it shipped.  Ends with exit code 1 where two means are further apart than `--within` points.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ttac
from benchmarks.peers import METHODS, restated
from ttac.evaluation.protocols import Order, Shift, schedule
from ttac.settings import split_assignments

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path(ttac.__file__).resolve().parent / "demo"
NET = DEMO / "fashion_resnet_bn_unfolded.onnx"
BATCH, WITHIN = 64, 0.3
SHIFTS = ("gaussian_noise", "shot_noise", "motion_blur", "snow", "brightness", "contrast", "pixelate")


def network() -> torch.nn.Module:
    """The shipped net in PyTorch, its weights from the ONNX file."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from plain_tent import net_from_onnx
    finally:
        sys.path.remove(str(ROOT / "examples"))
    net: torch.nn.Module = net_from_onnx(NET)
    return net


def errors(
    methods: Sequence[str], shifts: Sequence[str], samples: int, settings: Mapping[str, Any] | None = None
) -> dict[str, tuple[float, float]]:
    """For each method the mean errors of ttac and of PyTorch, in per cent; `settings` go to all that have them."""
    with np.load(DEMO / "fashion_stream.npz") as file:
        arrays = {name: file[name][:samples] for name in shifts}
        labels = file["labels"][:samples].astype(np.int64)
    found = {}
    with tempfile.TemporaryDirectory(prefix="ttac-agreement-") as folder:
        data: dict[str, Any] = {**arrays, "labels": labels}
        options = {"calibration": DEMO / "fashion_calibration.npz"}
        ours = ttac.evaluate(
            NET,
            data,
            methods=methods,
            settings=settings,
            protocols=["reset-each-shift"],
            batch=BATCH,
            options=options,
            output=folder,
        )
        for missing in ours.missing:
            raise missing.reason
        for method in methods:
            (manifest,) = (
                ttac.Bundle.read(path).manifest for path in (Path(folder) / "bundles").glob(f"{NET.stem}-{method}-*")
            )
            rows = [row["error"] for row in ours.rows() if row["method"] == method]
            theirs = [wrong(method, manifest, name, arrays[name], labels) for name in shifts]
            found[method] = (100 * float(np.mean(rows)), 100 * float(np.mean(theirs)))
    return found


def wrong(method: str, manifest: Any, name: str, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of wrong answers of PyTorch on one corruption, batch by batch as `ttac.evaluate` orders them."""
    with np.load(DEMO / "fashion_calibration.npz") as file:
        calibration = tensor(file["images"])
    untrained = [position for position, site in enumerate(manifest["sites"]) if not site.get("trained")]
    peer = restated(method, network(), manifest["method"]["settings"], untrained, calibration)
    misses = 0
    for batch in schedule("continual", [Shift(name)], len(images), labels, Order(), batch=BATCH):
        logits = peer.step(tensor(images[batch.rows]))
        misses += int((logits.argmax(1).numpy() != labels[batch.rows]).sum())
    return misses / len(images)


def tensor(images: np.ndarray) -> torch.Tensor:
    """Bytes as the net takes them."""
    return torch.from_numpy(images.reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255))


def main() -> None:
    """Print both errors of every method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas between them")
    parser.add_argument("--samples", type=int, default=1024, help="images of each corruption")
    parser.add_argument("--within", type=float, default=WITHIN, help="points that two means may differ by")
    parser.add_argument("--set", action="append", default=[], help="an option of all methods that have it, name=value")
    asked = parser.parse_args()
    found = errors(asked.methods.split(","), SHIFTS, asked.samples, split_assignments(asked.set))
    print(f"torch {torch.__version__}, {asked.samples} images of {len(SHIFTS)} corruptions")
    print("| method | ttac | PyTorch | difference |\n|---|---:|---:|---:|")
    for method, (ours, theirs) in found.items():
        print(f"| `{method}` | {ours:.2f} | {theirs:.2f} | {ours - theirs:+.2f} |")
    if any(abs(ours - theirs) > asked.within for ours, theirs in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
