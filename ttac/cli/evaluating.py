"""`ttac eval`: methods compared on streams of shifted samples."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttac import methods
from ttac.cli.common_options import (
    COMPILING,
    CONTEXT,
    PATH,
    as_json,
    check_folders,
    compile_options,
    count,
    numbers,
    several,
    terminal,
    verbose,
)
from ttac.cli.eval_tables import show_tables
from ttac.cli.terminal import Terminal
from ttac.errors import TtacError

if TYPE_CHECKING:
    from rich.progress import Progress

    from ttac.evaluation.evaluation_result import Evaluation
    from ttac.evaluation.watch import Watch

OUTPUT = "ttac-eval"
"""Default folder of the results."""
BETWEEN = 10.0
"""Seconds between two lines of progress where stderr is no terminal."""


@click.command("eval", context_settings=CONTEXT)
@click.argument("models", metavar="MODEL_OR_BUNDLE...", nargs=-1, type=PATH, required=True)
@click.option("--data", metavar="PATH", type=PATH, required=True, help="Folder of images, .npz, .npy or IDX file.")
@several("--methods", metavar="M,...", default="source,bn,tent", help="`all`, or names; `tent:lr=0.01` for a setting.")
@several("--corruptions", metavar="C,...", help="`all`, or names; computed from the first array.")
@several(
    "--severity", "severities", metavar="1-5,...", default="5", check=numbers, help="Severities of the corruptions."
)
@several("--arrays", metavar="NAME,...", help="Arrays to stream as shifts.  [default: all, if no corruption]")
@several("--protocol", "protocols", metavar="P,...", default="continual", help="When a method is reset; see below.")
@several("--order", "orders", metavar="O,...", default="shuffled", help="Order of the samples in a shift; see below.")
@click.option(
    "--concentration", metavar="X", type=float, default=0.1, show_default=True, help="Parameter of `dirichlet`."
)
@several("--batch", metavar="N,...", check=numbers, help="Samples a step.  [default: the target's, or the bundle's]")
@several("--seed", "seeds", metavar="N,...", default="0", check=numbers, help="Seeds of the order.")
@click.option("--samples", metavar="N", callback=count(), help="Use N samples, the same at every call.")
@click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="An option, for every method that has it."
)
@compile_options(*COMPILING)
@click.option(
    "-o", "--output", metavar="DIR", type=PATH, default=OUTPUT, show_default=True, help="Folder of the results."
)
@click.option(
    "--jobs", metavar="N", default="1", show_default=True, callback=count(), help="Number of parallel processes."
)
@click.option("--cluster", metavar="ray[:ADDRESS]", help="Run the cells on a Ray cluster.")
@click.option(
    "--threads", metavar="N", callback=count(low=0), help="Engine threads per process; 0: the engine's choice."
)
@click.option("--html", metavar="FILE", type=PATH, help="Write a report that opens in a browser, offline.")
@click.option("--csv", metavar="FILE", type=PATH, help="Write one row for each method and shift.")
@as_json
@verbose
@terminal
def evaluate(
    terminal: Terminal, /, models: tuple[Path, ...], html: Path | None, csv: Path | None, as_json: bool, **choices: Any
) -> int:
    """Compare methods on MODEL_OR_BUNDLE..., over streams of shifted samples.

    Models are compiled with every method, bundles are used unchanged. The folder of `--output` keeps finished results:
    the same command goes on where it stopped, and runs nothing twice.

    \b
    protocols  continual         all shifts in turn, never reset
               reset-each-shift  reset before each shift
               episodic          reset before each batch
               gradual           severities 1 2 3 4 5 4 3 2 1 of each corruption, never reset
               mixed             the samples of all shifts shuffled into one stream
    orders     shuffled, file (as stored), by-label, dirichlet

    Without labels the report holds entropy, drift from the source model, time and memory, but no error.
    """  # noqa: D301  (click takes the character)
    check_folders(html, csv)
    if html is not None:
        from ttac.evaluation.html_report import check_installed

        check_installed()
    evaluation = _evaluate(terminal, models, **choices)
    evaluation = replace(evaluation, about={**evaluation.about, "command": terminal.command})
    if csv is not None:
        csv.write_text(evaluation.csv(), encoding="utf-8")
    if html is not None:
        evaluation.write_html(html)
        terminal.say(f"wrote `{html}`")
    if as_json:
        terminal.json(evaluation.as_json())
    else:
        show_tables(terminal, evaluation)
    return _exit_code(terminal, evaluation)


def _evaluate(terminal: Terminal, models: tuple[Path, ...], **choices: Any) -> Evaluation:
    from ttac.evaluation.study import evaluate
    from ttac.settings import split_assignments

    options = {name: choices.pop(name) for name in list(choices) if name in COMPILING}
    choices["arrays"] = choices["arrays"] or None
    choices["settings"] = split_assignments(choices.pop("assignments"))
    if choices["methods"] == ("all",):
        choices["methods"] = tuple(sorted(methods.names(), key=lambda name: (name != "source", name)))
    with terminal.progress() as progress:
        try:
            return evaluate(models, options=options, watch=watch_of(terminal, progress), **choices)
        except KeyboardInterrupt:
            terminal.say(f"`{choices['output']}` holds the finished results; the same command goes on from there")
            raise


def watch_of(terminal: Terminal, progress: Progress) -> Watch:
    """Return a receiver that shows progress as a bar, or as lines where stderr is no terminal."""
    from ttac.evaluation.watch import Watch

    if not progress.disable:
        tasks: list[Any] = []

        def expect(task: str, total: int) -> None:
            tasks.append(progress.add_task(task, total=total))

        return Watch(terminal.say, expect, lambda moved: progress.advance(tasks[-1], moved))
    lines = LogProgress(terminal.say)
    return Watch(terminal.say, lines.expect, lines.moved)


class LogProgress:
    """Progress for a log: finished and total pieces, and the time that the rest will take."""

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self.say, self.clock = say, clock
        self.task, self.total, self.done, self.start, self.last_line = "", 0, 0, 0.0, 0.0

    def expect(self, task: str, total: int) -> None:
        """Begin a piece of work with `total` steps."""
        self.task, self.total, self.done = task, total, 0
        self.start = self.last_line = self.clock()

    def moved(self, count: int) -> None:
        """Count finished steps, and say so if the last line is old enough."""
        self.done += count
        now = self.clock()
        if now - self.last_line >= BETWEEN and self.done:
            self.last_line = now
            left = (now - self.start) / self.done * (self.total - self.done)
            self.say(f"{self.task}: {self.done} of {self.total}, about {left:.0f} s left")


def _exit_code(terminal: Terminal, evaluation: Evaluation) -> int:
    """Say which cells are missing, and return the exit code.

    The code is 0 if methods refused a model but other results exist, otherwise the code of the first failure.
    """
    reasons: dict[tuple[str, str], TtacError] = {
        (each.cell.subject.model, each.cell.subject.method): each.reason for each in evaluation.missing
    }
    for (name, method), reason in reasons.items():
        terminal.say(f"not run: `{method}` on `{name}`: {reason.problem}")
        for line in traceback.format_exception(reason):
            terminal.detail(line.rstrip())
    internal = [reason for reason in reasons.values() if reason.exit_code != 3]
    if internal:
        return internal[0].exit_code
    return 0 if evaluation.results or not reasons else next(iter(reasons.values())).exit_code


COMMAND = evaluate
"""The command that `ttac.cli.LazyCommand` calls."""
