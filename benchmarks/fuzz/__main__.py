"""Mutate models or bundles and use each as a person would; exit 1 where one ended badly.

A model is inspected and compiled.  A bundle, whose hashes are corrected, is loaded, stepped, reset and baked.

    python -m benchmarks.fuzz --bundles --cases 5000
    python -m benchmarks.fuzz --cases 5000 --seed 0
    python -m benchmarks.fuzz --minutes 10 --seed 7 --keep bad-cases
    python -m benchmarks.fuzz --only 137 --seed 0          one case again, with its file kept

A bad end is a traceback, a signal, more than 10 s of processor time, more than 2 GiB of memory, or a file opened
outside the permitted folders.  With a C compiler, the opens of all libraries count, else those of Python only.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import onnxruntime  # before the fork, so that no child pays for it

import ttac.bake
import ttac.inspection
import ttac.pipeline
import ttac.runtime
from benchmarks.fuzz.bundle_mutations import mutate_bundle
from benchmarks.fuzz.isolated_case import End, measure_nothing, run_case, watched_process
from benchmarks.fuzz.model_mutations import mutated
from ttac.errors import TtacError

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"
BUNDLED = ("tent", "sar", "surgeon", "leantta")
METHODS = ("tent", "bn", "surgeon", "sar", "leantta", "source")
SECONDS = 10
"""A case that takes more processor time counts as a hang."""
MEMORY = 2 << 30
"""Most resident bytes of a case."""


def main() -> int:
    """Run the cases and print the counts."""
    asked = _arguments()
    opens = "all libraries" if watched_process(ROOT / "build" / "fuzz" / "watch_files.so") else "Python"
    measure_nothing()
    sources = {path.name: path.read_bytes() for path in sorted(MODELS.glob("*.onnx"))}
    counts: collections.Counter[str] = collections.Counter()
    highest = longest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        tempfile.tempdir = str(folder)
        for number in _numbers(asked):
            end = _run(number, asked, sources, folder)
            highest, longest = max(highest, end.peak), max(longest, end.seconds)
            counts[_kind(end)] += 1
            if end.is_bad or end.peak > MEMORY:
                print(f"case {number}: {_kind(end)}\n{end.text.strip()[-700:]}\n", flush=True)
                _keep(asked.keep, number, folder, bundles=asked.bundles)
    print(json.dumps({"cases": counts.total(), "ends": dict(counts), "longest_s": round(longest, 1)}))
    print(f"highest peak {highest / 2**20:.0f} MiB; the opens of {opens} were watched")
    return int(any(key in counts for key in ("traceback", "signal", "hang", "outside", "memory")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", action="store_true", help="mutate bundles instead of models")
    parser.add_argument("--cases", type=int, default=0, help="number of cases; 0 goes by --minutes")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, with --cases")
    parser.add_argument("--only", type=int, help="number of the one case to run")
    parser.add_argument("--keep", type=Path, help="folder that gets the files of bad cases")
    return parser.parse_args()


def _numbers(asked: argparse.Namespace) -> Iterator[int]:
    if asked.only is not None:
        return iter([asked.only])
    if asked.cases:
        return iter(range(asked.first, asked.first + asked.cases))
    end = time.monotonic() + 60 * asked.minutes
    return itertools.takewhile(lambda _: time.monotonic() < end, itertools.count())


def _run(number: int, asked: argparse.Namespace, sources: dict[str, bytes], folder: Path) -> End:
    random = Random(f"{asked.seed}/{number}")
    if asked.bundles:
        case = _bundle_case(random, folder)
    else:
        (folder / "model.onnx").write_bytes(mutated(random, sources[random.choice(sorted(sources))]))
        case = _model_case(folder, random.choice(METHODS))
    paths = sysconfig.get_paths()
    permitted = [str(folder), str(ROOT), paths["stdlib"], paths["purelib"], sys.base_prefix, sys.prefix]
    permitted += [str(Path(onnxruntime.__file__).resolve().parents[1]), "/proc", "/sys", "/dev", *sys.path[1:]]
    return run_case(case, seconds=SECONDS, permitted=permitted, log=folder / "log.txt")


def _model_case(folder: Path, method: str) -> Callable[[], None]:
    def case() -> None:
        path = folder / "model.onnx"
        with suppress(TtacError):
            ttac.inspection.inspect_model(path)
        ttac.pipeline.compile_model(path, method=method, output=folder / "out.ttac", batch=4, dry_run=True)

    return case


def _bundle_case(random: Random, folder: Path) -> Callable[[], None]:
    """A mutated copy of one of the bundles, and its use."""
    path = folder / "case.ttac"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(random.choice(_bundles(folder)), path)
    mutate_bundle(random, path)

    def case() -> None:
        adapter = ttac.runtime.load(path)
        x = np.random.default_rng(0).standard_normal((4, *adapter.input_shape), dtype=np.float32)
        for _ in range(2):
            adapter.step(x)
        adapter.predict(x)
        adapter.reset()
        adapter.save(folder / "state.safetensors")
        adapter.restore(folder / "state.safetensors")
        ttac.bake.bake(path, folder / "state.safetensors", folder / "baked.onnx", force=True)

    return case


def _bundles(folder: Path) -> list[Path]:
    """The bundles that are mutated, compiled once."""
    paths = [folder / f"{method}.ttac" for method in BUNDLED]
    for method, path in zip(BUNDLED, paths, strict=True):
        if not path.exists():
            ttac.pipeline.compile_model(MODELS / "resnet.onnx", method=method, output=path, batch=4)
    return paths


def _kind(end: End) -> str:
    if end.status < 0:
        return "signal"
    if end.peak > MEMORY:
        return "memory"
    return {0: "compiled", 1: "traceback", 99: "outside", 124: "hang"}.get(end.status, f"exit {end.status}")


def _keep(keep: Path | None, number: int, folder: Path, *, bundles: bool) -> None:
    if keep is None:
        return
    keep.mkdir(parents=True, exist_ok=True)
    if bundles:
        shutil.copytree(folder / "case.ttac", keep / f"{number}.ttac", symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy(folder / "model.onnx", keep / f"{number}.onnx")


if __name__ == "__main__":
    sys.exit(main())
