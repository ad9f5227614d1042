"""The guard on short, hostile and harmless streams, on and off: errors before and after.

    python -m benchmarks.guard_study --tune            a grid of settings on the tuning half
    python -m benchmarks.guard_study                   the defaults on the reporting half, guard on and off
    python -m benchmarks.guard_study --cost            time of a step, guard on and off, in turn

The tuning half has the first 512 images, three corruptions, and every second hostile kind.  The reporting half has the
other 512 images, the other four corruptions, and all 14 hostile kinds.  `short` resets before each corruption.
`hostile` mixes 30 % clean batches with broken batches.  `harmless` draws clean images and the corruptions in turn.
After `hostile` and `harmless`, `predict` gives the errors.  `--record` keeps the results; a second call continues.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ttac
from benchmarks.drift import BATCH, DEMO, data, harmless

Images = dict[str, np.ndarray]
Spoil = Callable[[np.random.Generator, np.ndarray, Images, np.ndarray], np.ndarray]
TUNING = ("shot_noise", "motion_blur", "contrast")
HALF = 512
FOLDER = tempfile.TemporaryDirectory()
"""Folder of all bundles of the study."""
NETS = ("fashion_resnet_bn", "fashion_resnet_gn", "fashion_vit")
METHODS = ("tent", "eata", "sar", "surgeon", "dropit")
BATCH_NORMS: tuple[dict[str, float], ...] = (
    {"guard_radius": 0.03, "guard_information": 0.55},
    {"guard_radius": 0.045, "guard_information": 0.55},
    {"guard_radius": 0.06, "guard_information": 0.55},
    {"guard_radius": 0.045, "guard_information": 0.7},
    {"guard_radius": 0.03, "guard_information": 0.55, "source_weight": 0.01},
    {"guard_radius": 0.045, "guard_information": 0.55, "source_weight": 0.01},
)
OTHER_NORMS: tuple[dict[str, float], ...] = (
    {"guard_radius": 0.005, "guard_information": 0.7},
    {"guard_radius": 0.01, "guard_information": 0.7},
    {"guard_radius": 0.02, "guard_information": 0.7},
    {"guard_radius": 0.01, "guard_information": 0.8},
    {"guard_radius": 0.02, "guard_information": 0.7, "source_weight": 0.01},
)
"""Points of the grid for nets with batch norms, and for other nets."""


def hot_pixel(x: np.ndarray) -> np.ndarray:
    """The batch with one pixel of 1e10."""
    spoiled = x.copy()
    spoiled[0, 0, 5, 5] = 1e10
    return spoiled


KINDS: dict[str, Spoil] = {
    "noise": lambda random, x, images, labels: random.standard_normal(x.shape, dtype=np.float32),
    "constant": lambda random, x, images, labels: np.full_like(x, random.random()),
    "shuffled pixels": lambda random, x, images, labels: random.permuted(x.reshape(BATCH, -1), axis=1).reshape(x.shape),
    "one class": lambda random, x, images, labels: random.choice(images["clean"][labels == random.integers(10)], BATCH),
    "single sample": lambda random, x, images, labels: x[:1],
    "negative": lambda random, x, images, labels: 1 - x,
    "offset": lambda random, x, images, labels: x + 3,
    "denormal": lambda random, x, images, labels: x * np.float32(1e-40),
    "huge": lambda random, x, images, labels: x * np.float32(1e6),
    "bytes of noise": lambda random, x, images, labels: random.random(x.shape, dtype=np.float32) * 255,
    "bytes": lambda random, x, images, labels: x * 255,
    "repeated": lambda random, x, images, labels: np.repeat(x[:1], BATCH, 0),
    "hot pixel": lambda random, x, images, labels: hot_pixel(x),
    "upside down": lambda random, x, images, labels: x[:, :, ::-1],
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: a net, a method, its settings, a stream, its steps, the half of the data, and the seed of the stream."""

    net: str
    method: str
    settings: str
    stream: str
    steps: int
    half: str
    seed: int = 0


def main() -> None:
    """Print one line per case, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1, help="streams of each kind")
    parser.add_argument("--hostile", type=int, default=10000)
    parser.add_argument("--harmless", type=int, default=20000)
    parser.add_argument("--record", type=Path, default=Path("guard_study.jsonl"))
    asked = parser.parse_args()
    if asked.cost:
        cost(asked.nets, asked.methods)
        return
    lines = asked.record.read_text(encoding="utf-8").splitlines() if asked.record.exists() else []
    known = {json.dumps(row["case"]): row for row in map(json.loads, lines)}
    for case in cases(asked):
        row = known.get(json.dumps(asdict(case)))
        if row is None:
            row = {"case": asdict(case), **result(case)}
            with asked.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        show(row)


def cases(asked: argparse.Namespace) -> Iterator[Case]:
    """The cases of the tuning, or of the report."""
    half = "tuning" if asked.tune else "reporting"
    streams = [("short", 0, 0)]
    for seed in range(asked.seeds):
        streams += [("hostile", asked.hostile, seed), ("harmless", asked.harmless, seed)]
    for net in asked.nets:
        grid = BATCH_NORMS if net.endswith("bn") else OTHER_NORMS
        on: list[dict[str, Any]] = [{"guard": "on", **point} for point in grid] if asked.tune else [{"guard": "on"}]
        for method in asked.methods:
            for settings in ({"guard": "off"}, *on):
                for stream, steps, seed in streams:
                    text = json.dumps(settings)
                    yield Case(net=net, method=method, settings=text, stream=stream, steps=steps, half=half, seed=seed)


def result(case: Case) -> dict[str, Any]:
    """Errors in per cent before and after the stream, and the guard's counters."""
    images, labels = halved(case.half)
    adapter = compiled(case.net, case.method, case.settings)
    adapter.reset()
    before = errors(lambda x: adapter.predict(x), images, labels)
    if case.stream == "short":
        after = short(adapter, images, labels)
    else:
        play(adapter, case, images, labels)
        after = errors(lambda x: adapter.predict(x), images, labels)
    kept = {name: adapter.stats.get(name) for name in ("held", "guard_resets", "drift")}
    return {"before": before, "after": after, "stats": kept}


@functools.lru_cache(maxsize=2)
def compiled(net: str, method: str, settings: str) -> ttac.Adapter:
    """The bundle of a net, a method and its settings, loaded."""
    bundle = Path(tempfile.mkdtemp(dir=FOLDER.name)) / "b.ttac"
    ttac.compile(
        DEMO / f"{net}.onnx",
        method=method,
        batch=BATCH,
        calibration=DEMO / "fashion_calibration.npz",
        settings=json.loads(settings),
        output=bundle,
    )
    return ttac.load(bundle, threads=1)


def halved(half: str) -> tuple[Images, np.ndarray]:
    """The images and labels of a half: the clean images and its corruptions."""
    images, labels = data()
    place = slice(0, HALF) if half == "tuning" else slice(HALF, None)
    kept = [name for name in images if name == "clean" or (name in TUNING) == (half == "tuning")]
    return {name: images[name][place] for name in kept}, labels[place]


def errors(predict: Callable[[np.ndarray], Any], images: Images, labels: np.ndarray) -> dict[str, float]:
    """Errors on the clean images, and the mean over the corruptions."""
    each = {name: 100 * wrong(predict, x, labels) for name, x in images.items()}
    return {"clean": each.pop("clean"), "corrupted": float(np.mean(list(each.values())))}


def wrong(predict: Callable[[np.ndarray], Any], x: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of the images whose class `predict` misses."""
    logits = np.concatenate([predict(x[i : i + BATCH]) for i in range(0, len(x), BATCH)])
    return float(np.mean(logits.argmax(1) != labels))


def short(adapter: ttac.Adapter, images: Images, labels: np.ndarray) -> dict[str, float]:
    """Errors of the steps themselves, from the source before each corruption."""

    def restarted(x: np.ndarray) -> float:
        adapter.reset()
        return 100 * wrong(adapter.step, x, labels)

    each = {name: restarted(x) for name, x in images.items()}
    return {"clean": each.pop("clean"), "corrupted": float(np.mean(list(each.values())))}


def play(adapter: ttac.Adapter, case: Case, images: Images, labels: np.ndarray) -> None:
    """Step through a hostile or a harmless stream."""
    random = np.random.default_rng([case.seed, 0 if case.half == "tuning" else 1])
    mixed = harmless(images)
    kinds = list(KINDS.values())[:: 2 if case.half == "tuning" else 1]
    for step in range(case.steps):
        if case.stream == "harmless":
            adapter.step(mixed(random, step))
            continue
        x = images["clean"][random.choice(HALF, BATCH, replace=False)]
        if random.random() >= 0.3:
            x = kinds[random.integers(len(kinds))](random, x, images, labels)
        adapter.step(np.ascontiguousarray(x, np.float32))


def show(row: dict[str, Any]) -> None:
    """Print the row of a case."""
    case, before, after = row["case"], row["before"], row["after"]
    moved = ", ".join(f"{name} {before[name]:.1f} -> {after[name]:.2f}" for name in before)
    stats = ", ".join(f"{name} {value:.3g}" for name, value in row["stats"].items() if value is not None)
    print(*(case[key] for key in ("net", "method", "settings", "stream", "steps", "seed")), moved, stats, flush=True)


def cost(nets: list[str], methods: list[str], loads: int = 8, rounds: int = 55) -> None:
    """Print median and mean time of a step without and with the guard, in turns of changing order, on clean images.

    The median cost is that of the quotients of both steps of a turn: a slow moment of the machine slows both.  The mean
    has the steps that check calibration samples, too.  Each load puts the weights elsewhere, which moves the time of a
    step by as much as the guard does, so both bundles are loaded several times.
    """
    x = halved("reporting")[0]["clean"][:BATCH]
    for net in nets:
        for method in methods:
            bundles = [compiled(net, method, json.dumps({"guard": guard})).path for guard in ("off", "on")]
            rows = []
            for _ in range(loads):
                pair = [ttac.load(path, threads=1) for path in bundles]
                for number in range(-5, rounds):
                    order = 1 if number % 2 else -1
                    turn = [timed(adapter, x) for adapter in pair[::order]][::order]
                    rows += [turn] if number >= 0 else []
            times = np.array(rows)
            for kind, average in (("median", np.median), ("mean", np.mean)):
                off, on = average(times, 0)
                quotient = np.median(times[:, 1] / times[:, 0]) if kind == "median" else on / off
                figures = f"{1e3 * off:.3f} ms without, {1e3 * on:.3f} ms with, {quotient - 1:+.1%}"
                print(f"{net} {method}, {kind}: {figures}", flush=True)


def timed(adapter: ttac.Adapter, x: np.ndarray) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    adapter.step(x)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
