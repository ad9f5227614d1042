"""`python -m benchmarks [NETWORK ...] [--write docs/benchmarks.md]`: `ttac bench` on the benchmark networks.

Without networks, the command writes every part of the page: steps of all networks, large batches, everything trained,
memory budgets, and the time to compile.  `--parts` writes some parts; the others stay unchanged.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttac.evaluation.bench import Bench
from ttac.evaluation.bench_figures import Benchmark
from ttac.evaluation.bench_report import markdown
from ttac.evaluation.machine import about

METHODS = ("tent", "surgeon")
BATCH = 8
LARGE = 64
"""Number of samples of a step in the part with large batches."""
FEW = 7
"""Number of timed pairs where a step takes many seconds."""
INTRO = """\
# Benchmarks

Made by `make bench` on {date}: {machine}; {packages}.

Random weights. Time: inference of the source file, the step, and the same step in PyTorch, eager and compiled, each
with dense and with channels_last tensors, run in turn in one process, {threads} threads each; medians of paired ratios
with their quartiles. Memory: growth of the process over ten
steps after two warm-up steps (VmHWM - VmRSS), a fresh process each; `loaded` is the model before that. On cores that
do other work too, PyTorch's polling threads lose far more than threads that sleep: read its time column only from an
idle machine. This page is one run; repeated runs on a busy machine moved our ratios by up to a fifth.

Elsewhere: [8 bits](int8.md) (`python -m benchmarks.int8`), [all methods' errors](methods-table.md)
(`python -m benchmarks.methods_table`), [SURGEON's errors and cache](surgeon.md), [wild streams](wild-streams.md),
[which models compile](model-matrix.md), [LeanTTA](leantta-study.md) (`python -m benchmarks.single_sample`).
"""
FORMS = """\
One step of `tent`, batch 8, as a multiple of inference of the source: the portable and the blocked graphs of one
bundle, and PyTorch. Every turn runs each of them once in one process (`python -m benchmarks.forms NETWORK`)."""
Part = tuple[str, Any]
"""Markdown of a part, and its figures for JSON."""


def main() -> None:
    """Measure the networks or parts on the command line, print the figures, and write them with `--write`."""
    try:
        from benchmarks.networks import NETWORKS
    except ImportError as error:
        sys.exit(f"error: {error}\n\nhint: the benchmarks compare with PyTorch: `pip install torch onnxscript`")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"one table of some of {', '.join(NETWORKS)}")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}, with commas between them")
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas between them")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page, and FILE.json beside it")
    asked = parser.parse_args()
    unknown = sorted(set(asked.networks) - set(NETWORKS)) + sorted(set(asked.parts.split(",")) - set(PARTS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if asked.networks:
        print(steps(asked.networks, asked.threads, asked.methods.split(","), asked.batch)[0])
        return
    for name in asked.parts.split(","):
        text, figures = PARTS[name](asked.threads)
        print(text, flush=True)
        if asked.write:
            put(asked.write, name, text, figures, asked.threads)


def put(file: Path, name: str, text: str, figures: Any, threads: int) -> None:
    """Write the part into the page, and its figures into a JSON file; other parts stay, in the order of `PARTS`."""
    page = file.read_text(encoding="utf-8") if file.exists() else ""
    parts = {**dict(re.findall(r"<!-- (\w+) -->\n(.*?)\n<!-- end -->", page, re.DOTALL)), name: text.strip()}
    shown = "\n\n".join(f"<!-- {part} -->\n{parts[part]}\n<!-- end -->" for part in PARTS if part in parts)
    file.write_text(f"{INTRO.format(**about(threads))}\n{shown}\n", encoding="utf-8")
    beside = file.with_suffix(".json")
    known = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    kept = {part: known[part] for part in PARTS if part in known}
    beside.write_text(json.dumps({**kept, name: figures}, indent=1) + "\n", encoding="utf-8")


def steps(
    networks: Sequence[str],
    threads: int,
    methods: Sequence[str] = METHODS,
    batch: int = BATCH,
    against: Sequence[str] = METHODS,
    **choices: Any,
) -> Part:
    """Return a table of the methods on the networks; those of `against` also in PyTorch.

    `choices` are further fields of `Bench`.
    """
    from benchmarks.peers import PyTorch

    peers = PyTorch(against)
    say: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    compared = peers if against else None
    bench = Bench(methods=methods, batch=[batch], threads=threads, peers=compared, say=say, **choices)
    with peers.exported([Path(name) for name in networks]) as files:
        benchmark = bench.run(files)
    return table(benchmark), benchmark.as_json()


def table(benchmark: Benchmark) -> str:
    """Return the figures as Markdown, and a list of the failures."""
    missing = [f"* not measured: `{method}` on `{model}`: {why.problem}" for model, method, why in benchmark.missing]
    return markdown(benchmark) + ("\n" + "\n".join(missing) + "\n" if missing else "")


def all_networks(threads: int) -> Part:
    """Return the steps of every network at the batch of the other tables."""
    from benchmarks.networks import NETWORKS

    text, figures = steps([name for name in NETWORKS if name != "resnet18_32"], threads, against=["tent"])
    note = "Norms only, each method with its defaults; PyTorch runs `tent`, as its `surgeon` takes 28 inferences."
    return f"## Steps\n\n{note}\n\n{text}", figures


def forms(threads: int) -> Part:
    """Return one step of `tent` in each form, and in the variants of PyTorch."""
    from benchmarks.forms import bundle_of, header, line, measured
    from benchmarks.networks import NETWORKS

    lines, seconds = header(), {}
    with tempfile.TemporaryDirectory(prefix="ttac-forms-") as folder:
        for name in NETWORKS:
            found = measured(name, bundle_of(name, BATCH, Path(folder)), BATCH, threads)
            seconds[name] = {action: list(times) for action, times in found.items()}
            lines.append(line(name, found))
    return f"## Forms of the graphs\n\n{FORMS}\n\n" + "\n".join(lines) + "\n", seconds


def large_batch(threads: int) -> Part:
    """Return the steps of a net whose memory is nearly all activations."""
    text, figures = steps(["wrn28_10"], threads, batch=LARGE, against=["tent"], pairs=FEW)
    return f"## WRN-28-10, batch {LARGE}\n\n{text}", figures


def everything_trained(threads: int) -> Part:
    """Return the steps that train kernels, matrices and biases in addition to the norms."""
    text, figures = steps(["resnext29"], threads, against=[], options={"train": "all"})
    return f"## Everything trained (`--train all`)\n\n{text}", figures


def memory_budgets(threads: int) -> Part:
    """Return time and error of steps with less and less memory."""
    from examples.surgeon_study import budgets

    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join(budgets(Path(folder)))
    return f"## `tent --memory-budget`\n\nFrom everything dense to the least that works; one thread.\n{text}\n", text


def compile_times(threads: int) -> Part:
    """Return the seconds of a compile by the number of nodes."""
    from benchmarks.compile_time import rows

    times: list[Mapping[str, float]] = list(rows())
    lines = [f"| {row['nodes']:.0f} | {row['all']:.1f} | {1e3 * row['all'] / row['nodes']:.1f} |" for row in times]
    header = "| nodes | seconds | ms a node |\n|---:|---:|---:|"
    return "## Compiling\n\nWithout measuring memory.\n\n" + "\n".join([header, *lines]) + "\n", times


PARTS: dict[str, Callable[[int], Part]] = {
    "steps": all_networks,
    "forms": forms,
    "large": large_batch,
    "trained": everything_trained,
    "budgets": memory_budgets,
    "compile": compile_times,
}


if __name__ == "__main__":
    main()
