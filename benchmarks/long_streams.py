"""Long streams, one method after the other: errors of `predict` before and after, beside the source's.

    python -m benchmarks.long_streams --record FOLDER          run the streams, and print the table
    python -m benchmarks.long_streams --record FOLDER --show   print the table of the runs so far

The net has three convolutions with batch norms (`benchmarks.train_fashion_nets small`), and a batch has 16 images.  The
images are the reporting half of `benchmarks.guard_study`: the defaults of the guard were chosen without them.
`hostile` mixes 30 % clean batches with batches of 14 broken kinds.  `harmless` draws clean images and four corruptions
in turn.

The streams advance in turn by `--chunk` steps; each chunk has a seed of its own.  FOLDER keeps the state of each stream
and its errors, so a second call continues.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ttac
from benchmarks.drift import BATCH, DEMO, harmless
from benchmarks.guard_study import HALF, KINDS, Images, halved, wrong
from ttac.runtime.engine import open_session
from ttac.settings import split_assignments

NET = Path(__file__).parent / "small_nets" / "fashion_small.onnx"
TRAINED = "tent eata sar surgeon dropit deyo robust-entropy shot-im roid mecta zerosiam ecotta law cotta".split()
KEPT = ("bn statistics=ema", "leantta", "t3a", "neo", "lame", "rotta")
UNGUARDED = ("lame", "leantta")
"""Methods that train, further methods with their settings, and methods without a guard."""
SLOW = {"cotta": 20, "law": 5, "rotta": 5}
"""Methods with longer steps, and the divisor of the number of their steps."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A method and its settings, a stream, and its steps; its folder has the state and the errors."""

    folder: Path
    method: str
    settings: tuple[str, ...]
    kind: str
    steps: int

    @property
    def name(self) -> str:
        """Name of the stream's folder."""
        return f"{self.bundle}-{self.kind}"

    @property
    def bundle(self) -> str:
        """Name of the folder with the bundle, which the streams of a method share."""
        return "-".join([self.method, *(text.replace("=", "-") for text in self.settings)])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The errors so far, each with the step after which they were measured."""
        file = self.folder / self.name / "rows.jsonl"
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []

    @property
    def step(self) -> int:
        """Number of steps so far."""
        return int(self.rows[-1]["step"]) if self.rows else 0


def main() -> None:
    """Run the streams in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--methods", nargs="+", default=[*TRAINED, *KEPT])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--hostile", type=int, default=10000)
    parser.add_argument("--harmless", type=int, default=20000)
    parser.add_argument("--unguarded", type=int, default=5, help="divisor of the number of steps without the guard")
    parser.add_argument("--guards", nargs="+", default=["on", "off"], choices=("on", "off"))
    parser.add_argument("--chunk", type=int, default=1000)
    parser.add_argument("--show", action="store_true")
    parser.add_argument(
        "--recover", type=int, default=0, help="also measure the clean error after this many more clean batches"
    )
    asked = parser.parse_args()
    every = list(streams(asked))
    images, labels = halved("reporting")
    while not asked.show and (left := [stream for stream in every if stream.step < stream.steps]):
        for stream in left:
            advance(stream, images, labels, min(asked.chunk, stream.steps - stream.step))
    source = source_errors(images, labels)
    print("source:", ", ".join(f"{name} {error:.1f}" for name, error in source.items()))
    print(
        "| method | stream | steps | clean before | after | after clean batches | worst: source, after | turned back |"
    )
    print("|---|---|---:|---:|---:|---:|---|---:|")
    for stream in (stream for stream in every if stream.rows):
        later = recovered(stream, images["clean"], labels, asked.recover) if asked.recover else None
        print("|", " | ".join(cells(stream, source, later)), "|", flush=True)


def streams(asked: argparse.Namespace) -> Iterator[Stream]:
    """The streams of each method, with the guard and without."""
    for text in asked.methods:
        method, *own = text.split()
        for guard in ("",) if method in UNGUARDED else asked.guards:
            settings = (*own, *asked.set, *([f"guard={guard}"] if guard else []))
            part = SLOW.get(method, 1) * (asked.unguarded if guard == "off" else 1)
            for kind, steps in (("hostile", asked.hostile), ("harmless", asked.harmless)):
                yield Stream(folder=asked.record, method=method, settings=settings, kind=kind, steps=steps // part)


def advance(stream: Stream, images: Images, labels: np.ndarray, steps: int) -> None:
    """Step through the next chunk of a stream, and keep the state and the errors."""
    folder, rows = stream.folder / stream.name, stream.rows
    adapter = opened(stream, folder)
    if not rows:
        rows.append({"step": 0, "errors": errors(adapter.predict, images, labels)})
    first, held = stream.step, rows[-1].get("held", 0)
    play(adapter, stream, images, labels, range(first, first + steps))
    counted = ("held", "guard_resets", "guard_returns", "check_loss", "drift", "resets")
    stats = {name: adapter.stats[name] for name in counted if name in adapter.stats}
    rows.append({"step": first + steps, "errors": errors(adapter.predict, images, labels), "held": held, **stats})
    adapter.save(folder / "state.safetensors")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def opened(stream: Stream, folder: Path) -> ttac.Adapter:
    """The adapter of a stream, with the state in which the last chunk left it."""
    bundle = stream.folder / f"{stream.bundle}.ttac"
    folder.mkdir(parents=True, exist_ok=True)
    if not bundle.exists():
        ttac.compile(
            NET,
            method=stream.method,
            batch=BATCH,
            calibration=DEMO / "fashion_calibration.npz",
            settings=split_assignments(stream.settings),
            output=bundle,
        )
    adapter = ttac.load(bundle, threads=1)
    if stream.rows:
        adapter.restore(folder / "state.safetensors")
    return adapter


def play(adapter: ttac.Adapter, stream: Stream, images: Images, labels: np.ndarray, steps: range) -> None:
    """Step through a part of a stream; the number of the first step is the seed."""
    random, mixed, kinds = np.random.default_rng(steps.start), harmless(images), list(KINDS.values())
    for step in steps:
        if stream.kind == "harmless":
            x = mixed(random, step)
        else:
            x = images["clean"][random.choice(HALF, BATCH, replace=False)]
            if random.random() >= 0.3:
                x = kinds[random.integers(len(kinds))](random, x, images, labels)
        adapter.step(np.ascontiguousarray(x, np.float32))


def recovered(stream: Stream, clean: np.ndarray, labels: np.ndarray, batches: int) -> float:
    """The clean error in % after clean batches that follow the stream."""
    adapter, random = opened(stream, stream.folder / stream.name), np.random.default_rng(0)
    for _ in range(batches):
        adapter.step(clean[random.choice(HALF, BATCH, replace=False)])
    return 100 * wrong(adapter.predict, clean, labels)


def errors(predict: Any, images: Images, labels: np.ndarray) -> dict[str, float]:
    """Errors in % on the clean images and on each corruption."""
    return {name: 100 * wrong(predict, x, labels) for name, x in images.items()}


def source_errors(images: Images, labels: np.ndarray) -> dict[str, float]:
    """Errors of the source model in %."""
    session = open_session(NET, threads=1)
    name = session.get_inputs()[0].name
    return errors(lambda x: session.run(None, {name: x})[0], images, labels)


def cells(stream: Stream, source: dict[str, float], later: float | None) -> list[str]:
    """The row of a stream: clean errors, and the corruption whose error is highest beside the source's."""
    before, last = stream.rows[0]["errors"], stream.rows[-1]
    after = last["errors"]
    worst = max((name for name in source if name != "clean"), key=lambda name: after[name] - source[name])
    own = " ".join([stream.method, *(text for text in stream.settings if text != "guard=on")])
    figures = [f"{before['clean']:.1f}", f"{after['clean']:.1f}", "" if later is None else f"{later:.1f}"]
    returns = last.get("guard_returns")
    turned = "" if returns is None else f"{returns:.0f}"
    return [own, stream.kind, str(stream.step), *figures, f"{worst} {source[worst]:.1f}, {after[worst]:.1f}", turned]


if __name__ == "__main__":
    main()
