"""`python -m benchmarks [NETWORK ...] [--write docs/benchmarks.md]`: measure, print a table, keep it if asked to."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("ttac", "onnxruntime-training-cpu", "onnxruntime", "onnx", "torch", "numpy")


def main() -> None:
    """Measure the networks named on the command line, all of them by default."""
    try:
        from benchmarks.networks import NETWORKS
        from benchmarks.step_time import row
    except ImportError as error:
        sys.exit(f"error: {error}\n\nhint: the benchmarks compare with PyTorch: `pip install torch onnxscript`")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"some of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the table as Markdown, and FILE.json beside it"
    )
    asked = parser.parse_args()
    unknown = sorted(set(asked.networks) - set(NETWORKS))
    if unknown:
        parser.error(f"unknown network {', '.join(unknown)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="ttac-bench-") as folder:
        for name in asked.networks or NETWORKS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(row(name, Path(folder), asked.batch))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    text = page(rows)
    print(text)
    if asked.write:
        asked.write.write_text(text, encoding="utf-8")
        asked.write.with_suffix(".json").write_text(json.dumps({"about": about(), "rows": rows}, indent=1) + "\n")


def page(rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    facts = about()
    lines = [
        "# Benchmarks",
        "",
        f"Made by `make bench` on {facts['date']}: {facts['machine']}; {facts['packages']}.",
        "",
        "`tent` (Adam, all norms) on each network, random weights. Time: inference of the source file, the step, and",
        "the same step in PyTorch eager run in turn in one process, two threads each; medians of nine paired ratios.",
        "Memory: growth of the process over ten steps after two warm-up steps (VmHWM - VmRSS), a fresh process each.",
        "On cores that do other work too, PyTorch's polling threads lose far more than threads that sleep: read its",
        "time column only from an idle machine. This page is one run; repeated runs on a busy machine moved our",
        "ratios by up to a fifth.",
        "",
        "| network | batch | inference ms | step / inference | PyTorch / inference | peak MB | of PyTorch's "
        "| inference's peak MB | PyTorch's peak MB | residuals MB | compile s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(entry) for entry in rows), ""])


def _line(entry: dict[str, Any]) -> str:
    ratio, peak = entry["ratio"], entry["peak"]
    share = f"{peak['ttac'] / peak['pytorch']:.0%}" if peak["ttac"] else "-"
    cells = [
        entry["network"],
        str(entry["batch"]),
        f"{entry['milliseconds']['inference']:.1f}",
        f"**{ratio['ttac']:.2f}**",
        f"{ratio['pytorch']:.2f}",
        f"**{(peak['ttac'] or 0) / 1e6:.0f}**",
        share,
        f"{peak['inference'] / 1e6:.0f}",
        f"{peak['pytorch'] / 1e6:.0f}",
        f"{entry['residual_bytes'] / 1e6:.0f}",
        f"{entry['compile_seconds']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def about() -> dict[str, str]:
    """The machine, the versions and the date that figures hold for."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    installed = {found.name.lower(): found.version for found in metadata.distributions()}
    versions = [f"{package} {installed[package]}" for package in PACKAGES if package in installed]
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores of {model}",
        "packages": ", ".join(versions),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
