"""Mutate models and run `inspect` and `compile` on each; exit 1 where one ended badly.

    python -m benchmarks.fuzz --cases 5000 --seed 0
    python -m benchmarks.fuzz --minutes 10 --seed 7 --keep bad-cases
    python -m benchmarks.fuzz --only 137 --seed 0          one case again, with its file kept

A bad end is a traceback, a signal, more than 10 s, or a file opened outside the permitted folders.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import onnxruntime  # before the fork, so that no child pays for it

import ttac.pipeline
import ttac.reports.inspection
import ttac.reports.measure
from benchmarks.fuzz.isolated_case import End, run_case
from benchmarks.fuzz.model_mutations import mutated
from ttac.errors import TtacError

MODELS = Path(__file__).resolve().parents[2] / "tests" / "models"
METHODS = ("tent", "bn", "surgeon", "sar", "leantta", "source")
SECONDS = 10
"""A case that takes longer counts as a hang."""


def main() -> int:
    """Run the cases and print the counts."""
    asked = _arguments()
    _measure_nothing()
    sources = {path.name: path.read_bytes() for path in sorted(MODELS.glob("*.onnx"))}
    counts: collections.Counter[str] = collections.Counter()
    highest = longest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for number in _numbers(asked):
            end = _run(number, asked, sources, folder)
            highest, longest = max(highest, end.peak), max(longest, end.seconds)
            counts[_kind(end)] += 1
            if end.is_bad:
                print(f"case {number}: {_kind(end)}\n{end.text.strip()[-700:]}\n", flush=True)
                _keep(asked.keep, number, folder)
    print(json.dumps({"cases": counts.total(), "ends": dict(counts), "longest_s": round(longest, 1)}))
    print(f"highest peak {highest / 2**20:.0f} MiB")
    return int(any(key in counts for key in ("traceback", "signal", "hang", "outside")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=0, help="number of cases; 0 goes by --minutes")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the one case to run")
    parser.add_argument("--keep", type=Path, help="folder that gets the files of bad cases")
    return parser.parse_args()


def _measure_nothing() -> None:
    """Replace the measurement of memory, which starts a process of its own and takes most of a small compile."""
    real = ttac.reports.measure.measure
    for module in list(sys.modules.values()):
        if getattr(module, "measure", None) is real:
            module.measure = lambda *_, **__: None  # type: ignore[attr-defined]


def _numbers(asked: argparse.Namespace) -> Iterator[int]:
    if asked.only is not None:
        return iter([asked.only])
    if asked.cases:
        return iter(range(asked.cases))
    end = time.monotonic() + 60 * asked.minutes
    return itertools.takewhile(lambda _: time.monotonic() < end, itertools.count())


def _run(number: int, asked: argparse.Namespace, sources: dict[str, bytes], folder: Path) -> End:
    random = Random(f"{asked.seed}/{number}")
    path, output = folder / "model.onnx", folder / "out.ttac"
    path.write_bytes(mutated(random, sources[random.choice(sorted(sources))]))
    method = random.choice(METHODS)

    def case() -> None:
        with suppress(TtacError):
            ttac.reports.inspection.inspect_model(path)
        ttac.pipeline.compile_model(path, method=method, output=output, batch=4, dry_run=True)

    paths = sysconfig.get_paths()
    root = str(MODELS.parents[1])
    permitted = [str(folder), root, paths["stdlib"], paths["purelib"], sys.base_prefix, sys.prefix]
    permitted += [
        str(Path(onnxruntime.__file__).resolve().parents[1]),
        "/proc",
        "/sys",
        "/dev",
        tempfile.gettempdir(),
        *sys.path[1:],
    ]
    return run_case(case, seconds=SECONDS, permitted=permitted, log=folder / "log.txt")


def _kind(end: End) -> str:
    if end.status < 0:
        return "signal"
    return {0: "compiled", 1: "traceback", 99: "outside", 124: "hang"}.get(end.status, f"exit {end.status}")


def _keep(keep: Path | None, number: int, folder: Path) -> None:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{number}.onnx").write_bytes((folder / "model.onnx").read_bytes())


if __name__ == "__main__":
    sys.exit(main())
