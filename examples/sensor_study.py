"""Train a small 1-D network on real motion data, and compare methods under sensor faults.

    python examples/sensor_study.py [--data FOLDER] [--out FOLDER] [--batch 1]

Needs torch, and the data of `sensor_data.py`.  Writes `motion.onnx`, `motion_folded.onnx` (from the default exporter),
`motion_calibration.npz` and `motion_stream.npz` (with `labels`) to FOLDER, and prints the errors as a Markdown table,
which `docs/leantta-study.md` keeps.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sensor_data import CLASSES, CORRUPTIONS, SEVERITIES, WINDOW, corrupted, folder, read, windows
from torch import Tensor, nn
from torch.nn import functional

import ttac

STEPS, BATCH = 600, 64
RIVALS: dict[str, tuple[str, dict[str, Any]]] = {
    "source": ("source", {}),
    "bn": ("bn", {}),
    "bn, prior 16": ("bn", {"statistics": "blend"}),
    "tent": ("tent", {"guard": "off"}),
    "lame": ("lame", {}),
    "leantta": ("leantta", {}),
}


def network() -> nn.Module:
    """Return four convolutions along time, each with a norm, and the mean over time; 16 thousand parameters."""
    layers: list[nn.Module] = []
    for cin, cout, kernel, stride in ((6, 16, 7, 1), (16, 32, 5, 2), (32, 32, 3, 1), (32, 64, 3, 2)):
        conv = nn.Conv1d(cin, cout, kernel, stride, kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm1d(cout), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, len(CLASSES)))


def trained(series: Tensor, labels: Tensor) -> nn.Module:
    """Return the network after 600 steps on uncorrupted windows at random places."""
    torch.manual_seed(0)
    net = network().train()
    update = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(update, 2e-3, STEPS)
    for _ in range(STEPS):
        rows, starts = torch.randint(len(series), (BATCH,)), torch.randint(series.shape[2] - WINDOW + 1, (BATCH,))
        x = torch.stack([series[row, :, start : start + WINDOW] for row, start in zip(rows, starts, strict=True)])
        loss = functional.cross_entropy(net(x), labels[rows])
        update.zero_grad()
        torch.autograd.backward(loss)
        update.step()
        schedule.step()
    return net.eval()


def export(net: nn.Module, path: Path, *, fold: bool) -> None:
    """Write the network with its norms, or with `fold` without norms, as the default exporter does."""
    program = torch.onnx.export(
        net,
        (torch.rand(2, 6, WINDOW),),
        input_names=["x"],
        output_names=["logits"],
        dynamic_shapes={"input": {0: torch.export.Dim("N")}},
        dynamo=True,
        optimize=fold,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))


def make(data: Path, out: Path) -> None:
    """Train, export, and write calibration and test data."""
    series, labels = read(data / "BasicMotions_TRAIN.ts")
    net = trained(torch.from_numpy(series), torch.from_numpy(labels))
    export(net, out / "motion.onnx", fold=False)
    export(net, out / "motion_folded.onnx", fold=True)
    np.savez_compressed(out / "motion_calibration.npz", samples=windows(series, labels)[0])
    x, truth = windows(*read(data / "BasicMotions_TEST.ts"))
    kinds = {f"{name}_{level}": corrupted(x, name, level) for name in CORRUPTIONS for level in SEVERITIES}
    np.savez_compressed(out / "motion_stream.npz", allow_pickle=False, clean=x, **kinds, labels=truth.astype(np.uint8))


def table(out: Path, batch: int) -> None:
    """Print errors in per cent by corruption, averaged over severities; windows are shuffled, a reset precedes each."""
    with np.load(out / "motion_stream.npz") as file:
        labels = file["labels"]
        order = np.random.RandomState(0).permutation(len(labels))
        streams = {name: file[name][order] for name in file.files if name != "labels"}
        labels = labels[order]
    print(f"batch {batch}, {len(labels)} windows\n\n| method | clean | {' | '.join(CORRUPTIONS)} | mean |")
    print("|---|" + "---:|" * (len(CORRUPTIONS) + 2))
    for title, (method, settings) in RIVALS.items():
        with tempfile.TemporaryDirectory() as fresh:
            path = Path(fresh) / "bundle.ttac"
            ttac.compile(out / "motion.onnx", method=method, batch=batch, output=path, settings=settings)
            found = errors(ttac.load(path, threads=1), streams, labels)
        kinds = [np.mean([found[f"{name}_{level}"] for level in SEVERITIES]) for name in CORRUPTIONS]
        cells = [found["clean"], *kinds, float(np.mean(kinds))]
        print(f"| {title} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)


def errors(adapter: ttac.Adapter, streams: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Return the per cent of wrong answers on each stream, each computed before the update of its step."""
    wrong_of = {}
    for name, x in streams.items():
        adapter.reset()
        starts = range(0, len(x) - len(x) % adapter.batch, adapter.batch)
        wrong = [adapter.step(x[i : i + adapter.batch]).argmax(1) != labels[i : i + adapter.batch] for i in starts]
        wrong_of[name] = 100 * float(np.concatenate(wrong).mean())
    return wrong_of


def main() -> None:
    parser = argparse.ArgumentParser(description="Methods on real motion data under sensor faults.")
    parser.add_argument("--data", type=Path, help="folder of BasicMotions_TRAIN.ts and BasicMotions_TEST.ts")
    parser.add_argument("--out", type=Path, default=Path("motion"))
    parser.add_argument("--batch", type=int, action="append", help="may occur more than once; 1 by default")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    if not (asked.out / "motion_stream.npz").exists():
        make(asked.data or folder(), asked.out)
    for batch in asked.batch or [1]:
        table(asked.out, batch)


if __name__ == "__main__":
    main()
