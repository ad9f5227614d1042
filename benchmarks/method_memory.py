"""Memory of a step by method: `python -m benchmarks.method_memory resnext29 --batches 8 64 --keep DIR`.

Every peak is measured by the compile, in a fresh process: the growth of the peak over steps, beyond the loaded model.
The residuals are planned: bytes that the forward keeps for the gradients, which papers call the cache.  The networks
have random weights, so `ecotta` skips its warm-up.  DIR holds finished rows, so that an interrupted run goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import ttac
from benchmarks.exporting import export
from benchmarks.networks import NETWORKS
from ttac.errors import TtacError
from ttac.sizes import format_size

METHODS = ("source", "bn", "tent", "tent all", "cotta", "cotta all", "ecotta", "mecta", "surgeon", "surgeon all")
"""Methods of the papers' comparisons; ` all` trains all weights."""
SETTINGS: dict[str, dict[str, Any]] = {"ecotta": {"warmup_epochs": 0}}
CALIBRATED = ("ecotta",)
"""Methods that ask for calibration data; here the data are random numbers."""


def main() -> None:
    """Print one table row for each network, batch and method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method_memory", description=__doc__)
    parser.add_argument("networks", nargs="+", choices=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[8])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--keep", type=Path, default=Path("build/method-memory"), help="folder of finished rows")
    asked = parser.parse_args()
    asked.keep.mkdir(parents=True, exist_ok=True)
    print("| network | batch | method | peak of a step | of `tent`'s | loaded | residuals | inputs of norms |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    with TemporaryDirectory() as folder:
        for network in asked.networks:
            path = export(network, Path(folder))
            for batch in asked.batches:
                for method in asked.methods:
                    file = asked.keep / f"{network}-{batch}-{method.replace(' ', '-')}.json"
                    if not file.exists():
                        file.write_text(json.dumps(measured(path, method, batch, NETWORKS[network][1])))
                    found, tent = (json.loads(each.read_text()) if each.exists() else {} for each in
                                   (file, asked.keep / f"{network}-{batch}-tent.json"))  # fmt: skip
                    print(f"| {network} | {batch} | {row(method, found, tent.get('peak'))} |", flush=True)


def measured(path: Path, label: str, batch: int, side: int) -> dict[str, Any]:
    """Return `peak`, `loaded`, `residuals` and `norm_inputs` in bytes, or `refused` with the reason."""
    method, _, train = label.partition(" ")
    options: dict[str, Any] = {"settings": SETTINGS.get(method, {}), "train": train or "norms"}
    if method in CALIBRATED:
        options["calibration"] = np.random.default_rng(0).random((2 * batch, 3, side, side), np.float32)
    try:
        bundle = ttac.compile(path, method=method, batch=batch, output=path.with_name("measured.ttac"), **options)
    except TtacError as error:
        return {"refused": error.problem}
    report = bundle.report
    cache = bundle.manifest["memory"].get("published_cache", {})
    return {
        "peak": report["measured"]["peak"], "loaded": report["measured"]["loaded"],
        "residuals": report["planned"]["residuals"], "norm_inputs": cache.get("norm_inputs_bytes"),
    }  # fmt: skip


def row(label: str, found: dict[str, Any], tent: int | None) -> str:
    """Return the cells of one method: its name and its sizes, or the reason why it does not fit."""
    method, _, train = label.partition(" ")
    name = f"`{method}`, everything trained" if train else f"`{method}`"
    if "refused" in found:
        return f"{name} | {found['refused']} | | | | "
    peak, *others = ("-" if size is None else format_size(int(size)) for size in found.values())
    ratio = f"{found['peak'] / tent:.2f}" if tent and found["peak"] else "-"
    return " | ".join([name, peak, ratio, *others])


if __name__ == "__main__":
    main()
