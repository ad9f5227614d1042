"""`python -m benchmarks [NETWORK ...] [--write docs/benchmarks.md]`: `ttac bench` on the benchmark networks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ttac.evaluation.bench import Bench, Benchmark
from ttac.evaluation.bench_report import markdown


def main() -> None:
    """Measure the networks named on the command line, all of them by default."""
    try:
        from benchmarks.networks import NETWORKS
        from benchmarks.peers import PyTorch
    except ImportError as error:
        sys.exit(f"error: {error}\n\nhint: the benchmarks compare with PyTorch: `pip install torch onnxscript`")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"some of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--methods", default="tent", help="with commas between them")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the table as Markdown, and FILE.json beside it"
    )
    asked = parser.parse_args()
    unknown = sorted(set(asked.networks) - set(NETWORKS))
    if unknown:
        parser.error(f"unknown network {', '.join(unknown)}")
    peers = PyTorch()
    bench = Bench(
        methods=asked.methods.split(","),
        batch=[asked.batch],
        threads=asked.threads,
        peers=peers,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    with peers.exported([Path(name) for name in asked.networks or NETWORKS]) as files:
        found = bench.run(files)
    text = page(found)
    print(text)
    if asked.write:
        asked.write.write_text(text, encoding="utf-8")
        asked.write.with_suffix(".json").write_text(json.dumps(found.as_json(), indent=1) + "\n", encoding="utf-8")


def page(found: Benchmark) -> str:
    """The figures as Markdown."""
    facts = found.about
    intro = f"""\
# Benchmarks

Made by `make bench` on {facts["date"]}: {facts["machine"]}; {facts["packages"]}.

Each method with its defaults on each network, random weights. Time: inference of the source file, the step, and the
same step in PyTorch eager run in turn in one process, {facts["threads"]} threads each; medians of nine paired ratios
with their quartiles. Memory: growth of the process over ten steps after two warm-up steps (VmHWM - VmRSS), a fresh
process each; `loaded` is the model before that. On cores that do other work too, PyTorch's polling threads lose far
more than threads that sleep: read its time column only from an idle machine. This page is one run; repeated runs on a
busy machine moved our ratios by up to a fifth.

"""
    missing = [f"* not measured: `{method}` on `{model}`: {why.what}" for model, method, why in found.missing]
    return intro + markdown(found) + ("\n" + "\n".join(missing) + "\n" if missing else "")


if __name__ == "__main__":
    main()
