"""`ttac bench`: what a step costs, against plain inference and PyTorch."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import ttac
from ttac.cli.evaluating import COMPILING, numbers, several
from ttac.cli.options import CONTEXT, PATH, as_json, checked, compile_options, count, terminal, verbose
from ttac.cli.terminal import Terminal
from ttac.errors import RuntimeMissingError, UsageError
from ttac.options import one_of

if TYPE_CHECKING:
    from ttac.evaluation.bench import Benchmark


@click.command("bench", context_settings=CONTEXT)
@click.argument("models", metavar="MODEL_OR_BUNDLE...", nargs=-1, type=PATH, required=True)
@several("--methods", metavar="M,...", default="tent", help="Names; `tent:lr=0.01` for a setting.")
@several("--batch", metavar="N,...", check=numbers, help="Samples a step.  [default: 8, or the bundle's]")
@click.option("--data", metavar="PATH", type=PATH, help="Samples of a step.  [default: random numbers]")
@click.option("--pairs", metavar="N", default="9", show_default=True, callback=count(), help="Turns that are timed.")
@click.option("--threads", metavar="N", callback=count(), help="Engine threads.  [default: all cores]")
@click.option(
    "--against", metavar="pytorch", callback=checked(one_of("pytorch")), help="Also time the same method there."
)
@click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="For every method that has it.")
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
    """Measure what a step of MODEL_OR_BUNDLE... costs.

    Step and plain inference of the source model run in turn in one process; memory is measured in a fresh process each,
    as growth of its peak over ten steps. Keep the machine idle meanwhile. Methods that learn from certain samples only,
    such as `sar` and `eata`, may find none in random numbers: give them `--data`.

    With `--against pytorch`, from a checkout with torch installed, a model may be the name of a benchmark network
    (`ttac bench resnet18 --against pytorch`).
    """
    for file in (html, markdown):
        if file is not None and not file.resolve().parent.is_dir():
            raise UsageError("the folder does not exist", where=f"`{file}`", hint=f"`mkdir -p {file.parent}`")
    if html is not None:
        from ttac.evaluation.report import check_installed

        check_installed()
    found = _measure(terminal, models, **choices)
    if html is not None:
        found.write_html(html)
    if markdown is not None:
        from ttac.evaluation.bench_report import markdown as table_of

        markdown.write_text(table_of(found), encoding="utf-8")
    if as_json:
        terminal.json(found.as_json())
    else:
        show(terminal, found)
    return found.missing[0][2].exit_code if found.missing and not found.figures else 0


def show(terminal: Terminal, found: Benchmark) -> None:
    """Print the figures as a table, and what they hold for on stderr."""
    from ttac.evaluation.bench_report import columns, rows

    names = [name if place < 2 else f"{name}>" for place, name in enumerate(columns(found))]
    if found.figures:
        terminal.table(names, rows(found))
    for model_name, method, why in found.missing:
        terminal.say(f"not measured: `{method}` on `{model_name}`: {why.what}")
    facts = found.about
    terminal.say(f"{facts['machine']}, {facts['threads']} threads; {facts['packages']}")


def _measure(
    terminal: Terminal, models: tuple[Path, ...], against: str | None, threads: int | None, **choices: Any
) -> Benchmark:
    from ttac.evaluation.bench import Bench
    from ttac.settings import split_assignments

    options = {name: choices.pop(name) for name in list(choices) if name in COMPILING}
    settings = split_assignments(choices.pop("assignments"))
    peers = _peers() if against else None
    asked = Bench(options=options, settings=settings, threads=threads or 0, peers=peers, say=terminal.say, **choices)
    if peers is None:
        return asked.run(models)
    with peers.exported(models) as files:
        return asked.run(files)


def _peers() -> Any:
    """The re-statements in PyTorch, which live in ttac's checkout; raises RuntimeMissingError where there is none."""
    root = Path(ttac.__file__).resolve().parent.parent
    if not (root / "benchmarks" / "pytorch_peers.py").is_file():
        what = "the methods' re-statements in PyTorch are not part of the installed package"
        raise RuntimeMissingError(what, where="`--against pytorch`", hint="run it from a checkout: `pip install -e .`")
    sys.path.insert(0, str(root))
    try:
        peers = import_module("benchmarks.peers")
    except ImportError as error:
        hint = "`pip install torch onnxscript`"
        raise RuntimeMissingError(f"`--against pytorch` needs PyTorch: {error}", hint=hint) from error
    return peers.PyTorch()


COMMAND = bench
"""What `ttac.cli` calls."""
