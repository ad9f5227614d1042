"""The error of a sparse cache of activations, and the time and error of a memory budget.

    python examples/surgeon_study.py ratios --batch 64    # `surgeon` against `tent`, and against one keep ratio for all
    python examples/surgeon_study.py ratios --batch 16 --keep 1.0 0.1 --select blocks threshold topk
    python examples/surgeon_study.py ratios --half tuning    # on the images of the choices
    python examples/surgeon_study.py ratios --half tuning --passes 2    # the same, on streams twice as long
    python examples/surgeon_study.py budgets    # `tent` from everything dense to the least memory, on two networks

Prints Markdown, which `docs/surgeon.md` keeps.  Errors are those of the shipped Fashion-MNIST images under seven
corruptions in turn, without a reset between them.  The first part runs every method on the same few orders of the
images, and prints means with standard deviations over the orders; a difference is computed order by order.  The reading
of blocks was chosen on the images of even number, `--half tuning`; the default reports the other half.  The second part
exports ResNeXt-29 with PyTorch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ttac
from ttac.errors import BudgetError
from ttac.settings import split_assignments
from ttac.sizes import format_size

DEMO = Path(ttac.__file__).resolve().parent / "demo"
NET = DEMO / "fashion_resnet_bn_unfolded.onnx"
KEEPS = (1.0, 0.5, 0.2, 0.05)
SELECTIONS = ("blocks", "levels", "threshold", "topk")
HALVES = {"tuning": slice(0, None, 2), "reporting": slice(1, None, 2), "both": slice(None)}
"""Rows of the images for each word of `--half`."""
SEEDS = 3
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Budgets as fractions of the dense peak; the least budget follows from the first refusal."""
PAIRS = 15
COLUMNS = (
    "`select`", "`keep`", "kept", "counted cache", "`surgeon`", "- `tent`", "`dropit`, same bytes",
    "`surgeon` - `dropit`", "peak `surgeon`", "peak `dropit`",
)  # fmt: skip

Stream = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Outcome:
    """Error in per cent over a stream, mean keep ratio of the inputs, and bytes: measured peak, counted cache."""

    error: float
    kept: float
    peak: int
    counted: float


def stream() -> Stream:
    """Return images [n, 1, 28, 28] in [0, 1] with labels, one pair for each corruption."""
    with np.load(DEMO / "fashion_stream.npz") as file:
        names = [name for name in file.files if name not in ("labels", "about", "clean")]
        return [(file[name].astype(np.float32) / np.float32(255), file["labels"]) for name in names]


def in_orders(images: Stream, half: str, seeds: int, passes: int = 1) -> list[Stream]:
    """Return one stream per seed: a half of the images, those of each corruption `passes` times in random orders."""
    streams = []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        orders = [
            np.concatenate([random.permutation(np.arange(len(labels))[HALVES[half]]) for _ in range(passes)])
            for _, labels in images
        ]
        streams.append([(x[order], labels[order]) for (x, labels), order in zip(images, orders, strict=True)])
    return streams


def outcome(folder: Path, images: Stream, method: str, batch: int, **choices: Any) -> Outcome:
    """Compile the shipped net and run the stream through it."""
    return outcomes(folder, [images], method, batch, **choices)[0]


def outcomes(folder: Path, streams: Sequence[Stream], method: str, batch: int, **choices: Any) -> list[Outcome]:
    """Compile the shipped net once and run each stream through it, from the shipped weights.

    There is no guard, unless the settings have one.
    """
    path = folder / f"{len(list(folder.iterdir()))}.ttac"
    if method != "source":
        choices["settings"] = {"guard": "off", **choices.get("settings", {})}
    bundle = ttac.compile(NET, method=method, batch=batch, output=path, **choices)
    adapter = ttac.load(path, threads=1)
    memory = bundle.manifest["memory"]
    results = []
    for images in streams:
        adapter.reset()
        error, ratio = along(adapter, images)
        ratio = choices.get("settings", {}).get("keep", 1.0) if method == "dropit" else ratio
        counted = ratio * memory["published_cache"]["norm_inputs_bytes"]
        results.append(Outcome(error, ratio, memory["measured"].get("peak", 0), counted))
    return results


def along(adapter: ttac.Adapter, images: Stream) -> tuple[float, float]:
    """Return the error in per cent over a stream, and the mean keep ratio of the inputs."""
    wrong, total, kept = 0, 0, []
    for pictures, labels in images:
        for start in range(0, len(labels), adapter.batch):
            rows = slice(start, start + adapter.batch)
            wrong += int((adapter.step(pictures[rows]).argmax(1) != labels[rows]).sum())
            total += len(labels[rows])
            kept.append(float(adapter.stats.get("kept", 1.0)))
    assert adapter.stats["rejected"] == 0
    return 100 * wrong / total, statistics.mean(kept)


def ratios(folder: Path, asked: argparse.Namespace) -> Iterator[str]:
    """Yield a table of keep ratios per layer and batch, compared with `tent` and with one keep ratio for all layers."""
    streams, guard = in_orders(stream(), asked.half, asked.seeds, asked.passes), {"guard": asked.guard}
    tent = outcomes(folder, streams, "tent", asked.batch, settings=guard)
    source = outcomes(folder, streams[:1], "source", asked.batch)[0]
    yield (
        f"\nBatch {asked.batch}, {asked.half}, {asked.seeds} orders: `source` {source.error:.1f} %, "
        f"`tent` {spread(tent)} % at {format_size(tent[0].peak)}.\n"
    )
    yield from table(COLUMNS)
    for select in asked.select:
        for keep in asked.keep:
            chosen = {**guard, **split_assignments(asked.set), "select": select, "keep": keep}
            mine = outcomes(folder, streams, "surgeon", asked.batch, settings=chosen)
            ratio = statistics.mean(each.kept for each in mine)
            static = outcomes(
                folder, streams, "dropit", asked.batch, settings={**guard, "select": select, "keep": ratio}
            )
            counted = statistics.mean(each.counted for each in mine)
            yield row(f"`{select}`", keep, f"{ratio:.3f}", format_size(round(counted)), f"{spread(mine)} %",
                      spread(mine, tent), f"{spread(static)} %", spread(mine, static), format_size(mine[0].peak),
                      format_size(static[0].peak))  # fmt: skip


def spread(some: Sequence[Outcome], others: Sequence[Outcome] = ()) -> str:
    """Return mean error and standard deviation over the orders; with `others`, those of the difference to `others`."""
    errors = [each.error for each in some]
    if others:
        errors = [error - other.error for error, other in zip(errors, others, strict=True)]
    deviation = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    return f"{statistics.mean(errors):{'+' if others else ''}.2f}{deviation}"


def budgets(folder: Path) -> Iterator[str]:
    """Yield tables of `tent` with less and less memory, on ResNeXt-29 at batch 8 and the shipped net at batch 64."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from benchmarks.exporting import export

    yield from curve(folder, export("resnext29", folder), 8)
    images = stream()
    yield from curve(folder, NET, 64, lambda **choices: f"{outcome(folder, images, 'tent', 64, **choices).error:.2f} %")


def curve(folder: Path, model: Path, batch: int, error: Callable[..., str] | None = None) -> Iterator[str]:
    """Yield one network's table: budget, measured peak, number of residuals by codec, and the time of a step."""
    bundles = dict(within(folder, model, batch))
    times = paired({asked: ttac.load(path, threads=1) for asked, path in bundles.items()})
    yield f"\n`{model.stem}`, batch {batch}:\n"
    columns = ["`--memory-budget`", "measured peak", "ways", "gradients off by", "step"]
    yield from table([*columns, "error"] if error else columns)
    first = next(iter(times.values()))
    for asked, path in bundles.items():
        bundle = ttac.Bundle.read(path)
        peak = bundle.manifest["memory"]["measured"]["peak"]
        assert not asked or peak <= asked, "a bundle is only written within its budget"
        ways = [entry["how"] for entry in bundle.report["plan"]]
        counts = ", ".join(f"{ways.count(how)} {how}" for how in sorted({*ways} - {"recompute"}))
        lost = bundle.manifest["verified"]["residuals"]
        shown = [format_size(asked) if asked else "none", format_size(peak), counts, f"{lost or 0:.2g}",
                 f"{times[asked] * 1e3:.1f} ms ({times[asked] / first:.2f}x)"]  # fmt: skip
        yield row(*shown, *([error(memory_budget=asked or None)] if error else []))


def within(folder: Path, model: Path, batch: int) -> Iterator[tuple[int, Path]]:
    """Yield budget in bytes and bundle, from no budget (0) to the least that works."""
    path = folder / f"{model.stem}-dense.ttac"
    dense = ttac.compile(model, method="tent", batch=batch, output=path).manifest["memory"]["measured"]["peak"]
    yield 0, path
    for fraction in BUDGETS:
        asked = int(fraction * dense)
        path = folder / f"{model.stem}-{fraction}.ttac"
        try:
            ttac.compile(model, method="tent", batch=batch, output=path, memory_budget=asked)
        except BudgetError as error:
            least = int(getattr(error, "needs", 0) * 1.05)
            if least:
                path = folder / f"{model.stem}-least.ttac"
                ttac.compile(model, method="tent", batch=batch, output=path, memory_budget=least)
                yield least, path
            return
        yield asked, path


def paired(adapters: Mapping[int, ttac.Adapter]) -> dict[int, float]:
    """Return the median seconds of a step by budget; all adapters step in turn."""
    shape = next(iter(adapters.values())).input_shape
    seconds: dict[int, list[float]] = {budget: [] for budget in adapters}
    for number in range(PAIRS + 2):
        for budget, adapter in adapters.items():
            x = np.random.default_rng(number).normal(size=(adapter.batch, *shape)).astype(np.float32)
            start = time.perf_counter()
            adapter.step(x)
            seconds[budget].append(time.perf_counter() - start)
    return {budget: statistics.median(times[2:]) for budget, times in seconds.items()}


def table(columns: Sequence[str]) -> list[str]:
    return [row(*columns), row(*("---" for _ in columns))]


def row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def main() -> None:
    """Print the part on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("part", choices=["ratios", "budgets"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS)
    parser.add_argument("--select", nargs="+", choices=SELECTIONS, default=SELECTIONS[:1])
    parser.add_argument("--half", choices=tuple(HALVES), default="reporting")
    parser.add_argument("--guard", choices=["off", "on"], default="off", help="of all methods")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of `surgeon`")
    parser.add_argument("--passes", type=int, default=1, help="repetitions of each corruption's images")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="orders of the images")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = budgets(folder) if asked.part == "budgets" else ratios(folder, asked)
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
