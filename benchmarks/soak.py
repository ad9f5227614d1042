"""Kill writers, replace bundles under readers, damage files, and print the counts; exit 1 where one is not 0.

    python -m benchmarks.soak
    python -m benchmarks.soak --kills 200 --compiles 10 --loads 500 --flips 200 --seconds 60

Children are forked from this process and killed with SIGKILL after a random time.  `lost` counts files or bundles that
a reader refuses afterwards, `leftovers` the temporary files after the next writer, `mixtures` the loads with the
numbers of one bundle and the manifest of another.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np

import ttac.pipeline
from benchmarks.fuzz.isolated_case import measure_nothing
from ttac.errors import TtacError
from ttac.runtime import load, replacement
from ttac.runtime.bundle import open_bundle, place
from ttac.runtime.state_files import read_state, write_state

MODEL = Path(__file__).resolve().parents[1] / "tests" / "models" / "resnet.onnx"
BATCH = 4
Counts = dict[str, int | float]


def main() -> int:
    """Run all parts and print their counts."""
    options = _arguments()
    if options.unmeasured:
        measure_nothing()
    random = Random(options.seed)
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for method in ("tent", "bn"):
            ttac.pipeline.compile_model(MODEL, method=method, output=folder / f"{method}.ttac", batch=BATCH)
        parts: dict[str, Callable[[], Counts]] = {
            "kills during save": lambda: kills_during_save(folder, random, options.kills),
            "kills during exchange": lambda: kills_during_exchange(folder, random, options.exchanges, atomic=True),
            "kills of two renames": lambda: kills_during_exchange(folder, random, options.kills // 4, atomic=False),
            "kills during compile": lambda: kills_during_compile(folder, random, options.compiles),
            "kills during autosave": lambda: kills_during_autosave(folder, random, options.compiles),
            "damaged states": lambda: damaged_states(folder, random, options.flips),
            "damaged bundles": lambda: damaged_bundles(folder, random, options.flips),
            "loads during replacement": lambda: loads_during_replacement(
                folder, options.loads, options.seconds, options.pause
            ),
            "threads": lambda: threads(folder, options.seconds / 10),
        }
        for part, run in parts.items():
            if options.only and part not in options.only:
                continue
            start = time.perf_counter()
            counts = run()
            counts["seconds"] = round(time.perf_counter() - start, 1)
            print(f"{part:28s} {json.dumps(counts)}", flush=True)
            bad += sum(int(counts.get(key, 0)) for key in ("lost", "leftovers", "mixtures", "raw", "accepted"))
    return int(bad > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=2000, help="kills during save")
    parser.add_argument("--exchanges", type=int, default=500, help="kills during exchange, and during two renames")
    parser.add_argument(
        "--compiles", type=int, default=200, help="kills during compile (0.6 compiles of time each) and autosave"
    )
    parser.add_argument(
        "--unmeasured", action="store_true", help="compile without measuring the memory in a process of its own: faster"
    )
    parser.add_argument("--loads", type=int, default=20000, help="loads during replacement")
    parser.add_argument("--seconds", type=float, default=300, help="most seconds of the loads")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between two replacements")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="these parts, as `damaged states`")
    parser.add_argument("--flips", type=int, default=2000, help="damaged states, and damaged bundles")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def killed(work: Callable[[], object], seconds: float) -> None:
    """Run `work` in a forked child, and kill the child after the time unless it has ended."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def kills_during_save(folder: Path, random: Random, times: int) -> Counts:
    """Kill a process that saves states of one repeated number; a state of two numbers is lost too."""
    opened, place_of_states = open_bundle(folder / "tent.ttac"), folder / "states"
    place_of_states.mkdir()
    file, manifest = place_of_states / "s.safetensors", opened.manifest

    def save(number: int) -> None:
        arrays = {n: np.full(s.shape, number, s.dtype) for n, s in manifest.state.items()}
        write_state(file, arrays, manifest.identity)

    def forever() -> None:
        number = 1
        while True:
            save(number := number % 100 + 1)

    save(1)
    lost = 0
    for _ in range(times):
        killed(forever, random.uniform(0, 0.02))
        try:
            values = {float(array.flat[0]) for array in read_state(file, manifest).values() if array.size}
            lost += len(values) != 1
        except TtacError:
            lost += 1
    save(1)
    return {"kills": times, "lost": lost, "leftovers": len(list(place_of_states.iterdir())) - 2}


def kills_during_exchange(folder: Path, random: Random, times: int, *, atomic: bool) -> Counts:
    """Kill a process that replaces a bundle; without `atomic` it renames twice, as on systems that cannot exchange."""
    parent = folder / f"exchange-{atomic}"
    parent.mkdir()
    swap = replacement.swap
    if not atomic:
        replacement.swap = lambda one, other: False

    def forever() -> None:
        for number in range(10**9):
            staged = shutil.copytree(folder / ("tent.ttac", "bn.ttac")[number % 2], parent / f"staged-{number}")
            place(staged, parent / "b.ttac")

    shutil.copytree(folder / "bn.ttac", parent / "b.ttac")
    lost = repaired = 0
    for _ in range(times):
        killed(forever, random.uniform(0, 0.05))
        repaired += not (parent / "b.ttac").exists()
        try:
            replacement.read_unreplaced(parent / "b.ttac", lambda: open_bundle(parent / "b.ttac"))
        except TtacError:
            lost += 1
        for staged in parent.glob("staged-*"):  # a compile sweeps its own staging folder
            shutil.rmtree(staged)
    place(shutil.copytree(folder / "bn.ttac", parent / "staged"), parent / "b.ttac")
    replacement.swap = swap
    return {"kills": times, "repaired": repaired, "lost": lost, "leftovers": len(list(parent.iterdir())) - 1}


def kills_during_compile(folder: Path, random: Random, times: int) -> Counts:
    """Kill compiles over an existing bundle; its children die with it, and the next compile sweeps."""
    parent = folder / "compile"
    parent.mkdir()

    def compile_again() -> None:
        ttac.pipeline.compile_model(MODEL, method="bn", output=parent / "b.ttac", batch=BATCH)

    start = time.perf_counter()
    compile_again()
    longest = 1.2 * (time.perf_counter() - start)
    lost = 0
    for _ in range(times):
        killed(compile_again, random.uniform(0, longest))
        try:
            open_bundle(parent / "b.ttac")
        except TtacError:
            lost += 1
    compile_again()
    return {"kills": times, "lost": lost, "leftovers": len(list(parent.iterdir())) - 1}


def kills_during_autosave(folder: Path, random: Random, times: int) -> Counts:
    """Kill a process that adapts and saves after each step."""
    parent, x = folder / "autosave", _samples()
    parent.mkdir()
    file = parent / "s.safetensors"

    def forever() -> None:
        adapter = load(folder / "tent.ttac", threads=1)
        adapter.autosave(file, every=1)
        while True:
            adapter.step(x)

    manifest = open_bundle(folder / "tent.ttac").manifest
    load(folder / "tent.ttac", threads=1).step(x)  # the first load imports the engine
    start = time.perf_counter()
    load(folder / "tent.ttac", threads=1).step(x)
    longest = 4 * (time.perf_counter() - start)
    lost = saved = 0
    for _ in range(times):
        file.unlink(missing_ok=True)
        killed(forever, random.uniform(longest / 10, longest))
        saved += file.exists()
        with suppress(FileNotFoundError):
            file.stat()
            try:
                read_state(file, manifest)
            except TtacError:
                lost += 1
    adapter = load(folder / "tent.ttac", threads=1)
    adapter.save(file)
    return {
        "kills": times,
        "saved": saved,
        "lost": lost,
        "leftovers": sum(p.suffix == ".tmp" for p in parent.iterdir()),
    }


def damaged_states(folder: Path, random: Random, times: int) -> Counts:
    """Flip a bit or zero a page of a state file, which is to be refused."""
    adapter = load(folder / "tent.ttac", threads=1)
    adapter.step(_samples())
    file = folder / "state.safetensors"
    adapter.save(file)
    manifest = open_bundle(folder / "tent.ttac").manifest
    return _damaged(file, random, times, lambda: read_state(file, manifest))


def damaged_bundles(folder: Path, random: Random, times: int) -> Counts:
    """Flip a bit or zero a page of a listed file of a bundle, which is to be refused."""
    bundle = shutil.copytree(folder / "tent.ttac", folder / "damaged.ttac")
    names = sorted(open_bundle(bundle).manifest.files)
    counts: collections.Counter[str] = collections.Counter()
    for name in names:
        counts.update(_damaged(bundle / name, random, times // len(names), lambda: open_bundle(bundle)))
    return dict(counts)


def _damaged(file: Path, random: Random, times: int, read: Callable[[], object]) -> Counts:
    data = file.read_bytes()
    counts = {"cases": 0, "accepted": 0, "raw": 0}
    for number in range(times):
        changed = bytearray(data)
        at = random.randrange(len(data))
        if number % 4:
            changed[at] ^= 1 << random.randrange(8)
        else:
            changed[at : at + 4096] = bytes(len(changed[at : at + 4096]))
        if changed == data:
            continue
        file.write_bytes(bytes(changed))
        counts["cases"] += 1
        try:
            read()
            counts["accepted"] += 1
        except TtacError:
            pass
        except Exception:
            counts["raw"] += 1
    file.write_bytes(data)
    return dict(counts)


def loads_during_replacement(folder: Path, times: int, seconds: float, pause: float) -> Counts:
    """Load and run a bundle that a second process replaces again and again, with a `pause` of some seconds."""
    x, target = _samples(), folder / "replaced.ttac"
    versions = {name: load(folder / f"{name}.ttac", threads=1).predict(x) for name in ("tent", "bn")}
    shutil.copytree(folder / "bn.ttac", target)
    writer = os.fork()
    if writer == 0:
        for number in range(10**9):
            place(shutil.copytree(folder / f"{('tent', 'bn')[number % 2]}.ttac", folder / "staged"), target)
            time.sleep(pause)
    counts = {"loads": 0, "mixtures": 0, "raw": 0, "refused": 0}
    seen: set[str] = set()
    end = time.monotonic() + seconds
    while counts["loads"] < times and time.monotonic() < end:
        counts["loads"] += 1
        try:
            adapter = load(target, threads=1)
            name = adapter.bundle.manifest["method"]["name"]
            seen.add(name)
            counts["mixtures"] += not np.array_equal(adapter.predict(x), versions[name])
        except TtacError:
            counts["refused"] += 1
        except Exception:
            counts["raw"] += 1
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    return {**counts, "versions_seen": len(seen)}


def threads(folder: Path, seconds: float) -> Counts:
    """Step, predict, save, restore and reset one adapter from four threads."""
    adapter, x, file = load(folder / "tent.ttac", threads=1), _samples(), folder / "threads.safetensors"
    adapter.save(file)
    counts: collections.Counter[str] = collections.Counter(calls=0, raw=0, not_finite=0)
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        random = Random(number)
        calls = [lambda: adapter.step(x), lambda: adapter.predict(x), adapter.reset]
        calls += [lambda: adapter.save(file), lambda: adapter.restore(file)]
        while time.monotonic() < end:
            try:
                outputs = random.choice(calls)()
                counts["not_finite"] += outputs is not None and not np.isfinite(outputs).all()
            except Exception:
                counts["raw"] += 1
            counts["calls"] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return dict(counts)


def _samples() -> np.ndarray:
    shape = (BATCH, *_sample_shape())
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _sample_shape() -> tuple[int, ...]:
    """Shape of a sample of the model."""
    import onnx

    dims = onnx.load(MODEL).graph.input[0].type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims[1:])


if __name__ == "__main__":
    sys.exit(main())
