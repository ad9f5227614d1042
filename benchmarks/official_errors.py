"""Errors of ttac's methods and of their published code: `python -m benchmarks.official_errors CHECKOUTS`.

CHECKOUTS is as for `tests.golden.make.official_methods`.  Both run the shipped nets, and the one of `--wide`, on ten
corruptions with the same batches, and begin anew at each corruption.  The published code runs in float64, and ttac
without the guard.  The folder of `--keep` holds finished rows, so that an interrupted run goes on where it stopped.
`--single` also runs the published code in float32: the share of its other answers is that of rounding alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ttac
from benchmarks.agreement import DEMO, NETS, SHIFTS, WIDE, network
from benchmarks.pytorch_peers import use_batch_statistics
from tests.golden.make import official_batch_norms, official_cotta, official_grafts, official_law, official_roid
from tests.golden.make.official_methods import Stand
from tests.support import official as golden
from tests.support import official_batch_norms as norm_runs
from ttac.evaluation.corruptions import corrupted

COMPUTED = ("impulse_noise", "defocus_blur", "jpeg_compression")
"""Corruptions that are computed from the clean images, in addition to those of the shipped stream."""
IMAGES = {"black": "0", "white": "1", "seed": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    "zerosiam": {"lr": 2.5e-3, "predictor_lr": 2.5e-2},
    "law": {"lr": 1e-3, "exponent": 1.0, "agreement": 0.1, **IMAGES},
    "roid": {"lr": 2.5e-4, "optimizer": "sgd", **IMAGES},
    "cotta": {
        "lr": 1e-3, "optimizer": "sgd", "confidence": 0.92, "restored": 0.01, "teacher_decay": 0.999, **IMAGES,
    },
    "mecta": {"lr": 2.5e-4, "optimizer": "sgd", "least_drift": 0.00125, "keep": 0.3, "seed": 0},
    "sight": {
        "prototype_rate": 0.005, "source_pull": 0.01, "surprise": 1.0, "habit_rate": 0.05, "temperature": 0.05,
    },
}  # fmt: skip
"""Settings of each method, for ttac and for the published code; SGD has the momentum 0.9."""
OWN_STATISTICS = ("mecta", "sight")
"""Methods that choose the statistics of batch norms themselves."""


def law(checkouts: Path, net: nn.Module, x: Tensor) -> dict[str, np.ndarray]:
    """The published LAW; its folder leaves the path, because a module `utils` in it hides that of `roid`."""
    folder = str(checkouts / "LayerwiseTTA" / "classification")
    sys.path.insert(0, folder)
    try:
        return official_law.law(checkouts, "law", net, x)
    finally:
        sys.path.remove(folder)


Run = Callable[[Path, nn.Module, Tensor], dict[str, np.ndarray]]
RUNS: dict[str, Run] = {
    "zerosiam": official_grafts.zerosiam,
    "sight": official_grafts.sight,
    "law": law,
    "roid": lambda checkouts, net, x: official_roid.roid(checkouts, SETTINGS["roid"])(net, x),
    "cotta": lambda checkouts, net, x: official_cotta.cotta(checkouts, "cotta")(net, x),
    "mecta": official_batch_norms.mecta,
}
"""The published code of each method on batches [steps, N, 1, 28, 28]."""


def streams(samples: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return images of each corruption, uint8 [samples, 1, 28, 28], and their labels."""
    with np.load(DEMO / "fashion_stream.npz") as file:
        found = {name: file[name][:samples] for name in SHIFTS}
        clean, labels = file["clean"][:samples], file["labels"][:samples].astype(np.int64)
    return {**found, **{name: corrupted(clean, name, 5) for name in COMPUTED}}, labels


def theirs(
    checkouts: Path, method: str, kind: str, file: Path, batches: np.ndarray, dtype: torch.dtype = torch.float64
) -> np.ndarray:
    """Return the logits of the published code for each batch, computed in `dtype`."""
    torch.set_default_dtype(torch.float32)
    net = network(kind, file).to(dtype).requires_grad_(False)
    torch.set_default_dtype(dtype)
    net = net if method in OWN_STATISTICS else use_batch_statistics(net)
    official_grafts.CLASSES = 10
    golden.SETTINGS[method] = norm_runs.SETTINGS[method] = SETTINGS[method]
    found = RUNS[method](checkouts, net, torch.from_numpy(batches).to(dtype))["logits"]
    torch.set_default_dtype(torch.float32)
    return found


def row(
    checkouts: Path, method: str, kind: str, file: Path, batch: int, samples: int, *, single: bool
) -> dict[str, Any]:
    """Return the mean errors of both in per cent, and the largest share of other classes under one corruption.

    With `single`, also the error of the published code in float32, and the largest share of its other classes.
    """
    images, labels = streams(samples)
    wrong: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="ttac-official-") as folder:
        bundle = ttac.compile(
            file, method=method, batch=batch, output=Path(folder) / "b.ttac", norms="keep",
            settings={"guard": "off", **SETTINGS[method]} if method != "sight" else SETTINGS[method],
        )  # fmt: skip
        adapter = ttac.load(bundle.path, threads=1)
        for arrays in images.values():
            batches = (arrays.astype(np.float32) / np.float32(255)).reshape(-1, batch, 1, 28, 28)
            adapter.reset()
            ours = np.concatenate([adapter.step(x).argmax(1) for x in batches])
            published = theirs(checkouts, method, kind, file, batches).reshape(samples, -1).argmax(1)
            wrong["ttac"].append(float(np.mean(ours != labels)))
            wrong["published"].append(float(np.mean(published != labels)))
            wrong["other classes"].append(float(np.mean(ours != published)))
            if single:
                rounded = theirs(checkouts, method, kind, file, batches, torch.float32).reshape(samples, -1).argmax(1)
                wrong["float32"].append(float(np.mean(rounded != labels)))
                wrong["other classes, float32"].append(float(np.mean(rounded != published)))
    combine = {name: np.max if name.startswith("other") else np.mean for name in wrong}
    return {name: 100 * float(combine[name](values)) for name, values in wrong.items()}


def main() -> None:
    """Print a row for each net, method and batch."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.official_errors", description=__doc__)
    parser.add_argument("checkouts", type=Path, nargs="?", help="not for `--finished`")
    parser.add_argument("--methods", default=",".join(SETTINGS), help="with commas between them")
    parser.add_argument("--nets", default=",".join(NETS), help="with commas between them, or nothing")
    parser.add_argument("--wide", type=Path, metavar="FILE", help=f"{WIDE}, of `benchmarks.train_fashion_nets wide`")
    parser.add_argument("--batches", default="64,16", help="`sight` takes single samples")
    parser.add_argument("--samples", type=int, default=1024, help="images of each corruption")
    parser.add_argument("--finished", action="store_true", help="print the finished rows of `--keep`, and run nothing")
    parser.add_argument("--single", action="store_true", help="also run the published code in float32")
    parser.add_argument("--keep", type=Path, default=Path("build/official-errors"), help="folder of finished rows")
    asked = parser.parse_args()
    if asked.finished:
        print("\n".join(finished(asked.keep, asked.samples)))
        return
    if asked.checkouts is None:
        parser.error("name the folder of the published code")
    files = {kind: DEMO / f"{net}.onnx" for kind, net in NETS.items() if kind in asked.nets.split(",")}
    files |= {WIDE: asked.wide} if asked.wide else {}
    torch.set_num_threads(1)
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment, misc]
    nn.Module.cuda = lambda module: module  # type: ignore[method-assign, assignment, misc]
    sys.meta_path.insert(0, Stand())
    asked.keep.mkdir(parents=True, exist_ok=True)
    more = (" published in float32 | its other classes |", "---:|---:|") if asked.single else ("", "")
    print(f"| net | method | batch | ttac | published code | difference | other classes, at most |{more[0]}")
    print(f"|---|---|---:|---:|---:|---:|---:|{more[1]}")
    for method in asked.methods.split(","):
        for kind, model in files.items():
            for batch in [1] if method == "sight" else [int(size) for size in asked.batches.split(",")]:
                if method != "mecta" or kind in ("BatchNorm", WIDE):
                    print(line(asked, method, kind, model, batch), flush=True)


def finished(keep: Path, samples: int) -> list[str]:
    """Return the table of the rows in the folder `keep` at this number of samples: errors of ttac / published code."""
    sizes = (64, 16, 1)
    lines = [
        "| method | net | " + " | ".join(f"batch {size}" for size in sizes) + " | other answers, at most |",
        "|---|---|" + "---:|" * (len(sizes) + 1),
    ]
    for method, kind in product(RUNS, (*NETS, WIDE)):
        found = {size: keep / f"{method}-{kind}-{size}-{samples}.json" for size in sizes}
        rows = {size: json.loads(file.read_text()) for size, file in found.items() if file.exists()}
        if rows:
            cells = [
                f"{rows[size]['ttac']:.2f} / {rows[size]['published']:.2f}" if size in rows else "" for size in sizes
            ]
            most = max(row["other classes"] for row in rows.values())
            lines.append(f"| `{method}` | {kind} | {' | '.join(cells)} | {most:.2f} % |")
    return lines


def line(asked: argparse.Namespace, method: str, kind: str, model: Path, batch: int) -> str:
    """Return one row of the table, from the folder of finished rows if it is there."""
    file = asked.keep / f"{method}-{kind}-{batch}-{asked.samples}{'-single' if asked.single else ''}.json"
    if not file.exists():
        found = row(asked.checkouts, method, kind, model, batch, asked.samples, single=asked.single)
        file.write_text(json.dumps(found))
    found = json.loads(file.read_text())
    ours, published = found.pop("ttac"), found.pop("published")
    cells = [f"{value:.2f}" for value in found.values()]
    cells = [f"{ours:.2f}", f"{published:.2f}", f"{ours - published:+.2f}", *cells]
    return f"| {kind} | `{method}` | {batch} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
