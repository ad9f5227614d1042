"""`ttac bench`: time and memory of a step, compared with inference of the source and with PyTorch."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttac.cli.common_options import (
    COMPILING,
    CONTEXT,
    PATH,
    as_json,
    check_folders,
    checked,
    compile_options,
    count,
    numbers,
    several,
    terminal,
    verbose,
)
from ttac.cli.terminal import Terminal
from ttac.errors import RuntimeMissingError
from ttac.methods import DEFAULT
from ttac.options import one_of

if TYPE_CHECKING:
    from ttac.evaluation.bench_figures import Benchmark

CHECKOUT = Path(__file__).resolve().parents[2]
"""Folder that holds `benchmarks/` in a checkout of ttac."""


@click.command("bench", context_settings=CONTEXT)
@click.argument("models", metavar="MODEL_OR_BUNDLE...", nargs=-1, type=PATH, required=True)
@several("--methods", metavar="M,...", default=DEFAULT, help="Names; `tent:lr=0.01` for a setting.")
@several("--batch", metavar="N,...", check=numbers, help="Samples a step.  [default: 8, or the bundle's]")
@click.option("--data", metavar="PATH", type=PATH, help="Samples of a step.  [default: random numbers]")
@click.option("--pairs", metavar="N", default="9", show_default=True, callback=count(), help="Number of timed turns.")
@click.option("--threads", metavar="N", callback=count(), help="Engine threads.  [default: all cores]")
@click.option(
    "--against", metavar="pytorch", callback=checked(one_of("pytorch")), help="Also time the same method in PyTorch."
)
@click.option(
    "--beside", metavar="MODEL", type=PATH, help="Also time inference of MODEL, as the float model of an 8-bit bundle."
)
@click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="An option, for every method that has it."
)
@compile_options(*COMPILING)
@click.option("--html", metavar="FILE", type=PATH, help="Write the figures with plots, for a browser.")
@click.option("--markdown", metavar="FILE", type=PATH, help="Write the figures as a Markdown table.")
@as_json
@verbose
@terminal
def bench(
    terminal: Terminal,
    /,
    models: tuple[Path, ...],
    html: Path | None,
    markdown: Path | None,
    as_json: bool,
    **choices: Any,
) -> int:
    """Measure time and memory of a step of MODEL_OR_BUNDLE...

    Step and inference of the source model run in turn in one process. Memory is measured in a fresh process each, as
    growth of its peak over ten steps. Keep the machine idle during the measurement. Methods that learn from certain
    samples only, such as `sar` and `eata`, may find none among random numbers: give them `--data`. Without `--data`,
    models are compiled with `guard=off`, because the guard would hold every step.

    With `--against pytorch`, from a checkout with torch installed, a model may be the name of a benchmark network
    (`ttac bench resnet18 --against pytorch`).
    """
    check_folders(html, markdown)
    if html is not None:
        from ttac.evaluation.html_report import check_installed

        check_installed()
    benchmark = _measure(terminal, models, **choices)
    from ttac.evaluation import bench_report

    if html is not None:
        html.write_text(bench_report.page(benchmark), encoding="utf-8")
    if markdown is not None:
        markdown.write_text(bench_report.markdown(benchmark), encoding="utf-8")
    if as_json:
        terminal.json(benchmark.as_json())
    else:
        show(terminal, benchmark)
    return benchmark.missing[0][2].exit_code if benchmark.missing and not benchmark.figures else 0


def show(terminal: Terminal, benchmark: Benchmark) -> None:
    """Print the figures as a table on stdout, and the machine and the failures on stderr."""
    from ttac.evaluation.bench_report import columns, rows

    names = [name if place < 2 else f"{name}>" for place, name in enumerate(columns(benchmark))]
    if benchmark.figures:
        terminal.table(names, rows(benchmark))
    for model_name, method, why in benchmark.missing:
        terminal.say(f"not measured: `{method}` on `{model_name}`: {why.problem}")
    facts = benchmark.about
    terminal.say(f"{facts['machine']}, {facts['threads']} threads; {facts['packages']}")


def _measure(
    terminal: Terminal, models: tuple[Path, ...], against: str | None, threads: int | None, **choices: Any
) -> Benchmark:
    from ttac.evaluation.bench import Bench
    from ttac.settings import split_assignments

    options = {name: choices.pop(name) for name in list(choices) if name in COMPILING}
    settings = split_assignments(choices.pop("assignments"))
    peers = _peers() if against else None
    bench = Bench(options=options, settings=settings, threads=threads or 0, peers=peers, say=terminal.say, **choices)
    if peers is None:
        return bench.run(models)
    with peers.exported(models) as files:
        return bench.run(files)


def _peers() -> Any:
    """Return the methods in PyTorch from a checkout of ttac; raises RuntimeMissingError outside a checkout."""
    if not (CHECKOUT / "benchmarks" / "pytorch_peers.py").is_file():
        problem = "the methods in PyTorch are not part of the installed package"
        raise RuntimeMissingError(
            problem, where="`--against pytorch`", hint="run it from a checkout: `pip install -e .`"
        )
    sys.path.insert(0, str(CHECKOUT))
    try:
        peers = import_module("benchmarks.peers")
    except ImportError as error:
        hint = "`pip install torch onnxscript`"
        raise RuntimeMissingError(f"`--against pytorch` needs PyTorch: {error}", hint=hint) from error
    return peers.PyTorch()


COMMAND = bench
"""The command that `ttac.cli.LazyCommand` calls."""
