"""`ttac eval`: methods compared on streams of shifted samples."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttac import methods
from ttac.cli.options import CONTEXT, MODEL, PATH, as_json, compile_options, count, option_name, terminal, verbose
from ttac.cli.terminal import Terminal
from ttac.errors import TtacError, UsageError
from ttac.sizes import format_size

if TYPE_CHECKING:
    from rich.progress import Progress

    from ttac.evaluation.evaluation import Evaluation, Table
    from ttac.evaluation.study import Watch

OUTPUT = "ttac-eval"
COMPILING = ("target", "calibration", "train", *MODEL, "pixels")
"""Options that go to `ttac.compile` unchanged."""

BETWEEN = 10.0
"""Seconds between two lines of progress where stderr is no terminal."""


def words(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """An option that may be given several times, and hold several words with commas between them."""
    return tuple(word.strip() for text in value for word in text.split(",") if word.strip())


def numbers(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[int, ...]:
    """The same for whole numbers."""
    found = words(ctx, param, value)
    for word in found:
        if not word.isdecimal():
            hint = "give whole numbers with commas between them"
            raise UsageError(f"`{word}` does not fit", where=option_name(param), hint=hint)
    return tuple(map(int, found))


def several(*names: str, default: str = "", check: Any = words, **more: Any) -> Callable[[Any], Any]:
    """An option that takes a list; `default` is written as on the command line."""
    if default:
        more |= {"default": (default,), "help": f"{more['help']}  [default: {default}]"}
    return click.option(*names, multiple=True, callback=check, **more)


@click.command("eval", context_settings=CONTEXT)
@click.argument("models", metavar="MODEL_OR_BUNDLE...", nargs=-1, type=PATH, required=True)
@click.option("--data", metavar="PATH", type=PATH, required=True, help="Images' folder, .npz, .npy or IDX file.")
@several("--methods", metavar="M,...", default="source,bn,tent", help="`all`, or names; `tent:lr=0.01` for a setting.")
@several("--corruptions", metavar="C,...", help="`all`, or names; made of the first array.")
@several("--severity", "severities", metavar="1-5,...", default="5", check=numbers, help="Of the corruptions.")
@several("--arrays", metavar="NAME,...", help="Arrays that are shifts themselves.  [default: all, if no corruption]")
@several(
    "--protocol", "protocols", metavar="P,...", default="continual", help="When a method starts afresh; see below."
)
@several("--order", "orders", metavar="O,...", default="shuffled", help="Of the samples in a shift; see below.")
@click.option("--concentration", metavar="X", type=float, default=0.1, show_default=True, help="Of `dirichlet`.")
@several("--batch", metavar="N,...", check=numbers, help="Samples a step.  [default: 64, or the bundle's]")
@several("--seed", "seeds", metavar="N,...", default="0", check=numbers, help="Of the order.")
@click.option("--samples", metavar="N", callback=count(), help="Use this many, the same ones every time.")
@click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="For every method that has it.")
@compile_options(*COMPILING)
@click.option("-o", "--output", metavar="DIR", type=PATH, default=OUTPUT, show_default=True, help="Keeps the results.")
@click.option("--jobs", metavar="N", default="1", show_default=True, callback=count(), help="Processes at a time.")
@click.option("--cluster", metavar="ray[:ADDRESS]", help="Run the cells on a Ray cluster.")
@click.option("--threads", metavar="N", callback=count(low=0), help="Engine threads of a process; 0 leaves it to it.")
@click.option("--html", metavar="FILE", type=PATH, help="Write a report that opens in a browser, offline.")
@click.option("--csv", metavar="FILE", type=PATH, help="Write one row for each method and shift.")
@as_json
@verbose
@terminal
def evaluate(
    terminal: Terminal, /, models: tuple[Path, ...], html: Path | None, csv: Path | None, as_json: bool, **choices: Any
) -> int:
    """Compare methods on MODEL_OR_BUNDLE..., over streams of shifted samples.

    Models are compiled with every method, bundles are taken as they are. Finished results are kept in the folder of
    `--output`: the same command goes on where it stopped, and runs nothing twice.

    \b
    protocols  continual         all shifts in turn, never reset
               reset-each-shift  reset before each shift
               episodic          reset before each batch
               gradual           severities 1 2 3 4 5 4 3 2 1 of each corruption, never reset
               mixed             the samples of all shifts shuffled into one stream
    orders     shuffled, file (as stored), by-label, dirichlet

    Without labels there are entropy, drift from the source model, time and memory.
    """  # noqa: D301  (click takes the character)
    for file in (html, csv):
        if file is not None and not file.resolve().parent.is_dir():
            raise UsageError("the folder does not exist", where=f"`{file}`", hint=f"`mkdir -p {file.parent}`")
    if html is not None:
        from ttac.evaluation.report import check_installed

        check_installed()
    found = _evaluate(terminal, models, **choices)
    if csv is not None:
        csv.write_text(found.csv(), encoding="utf-8")
    if html is not None:
        found.write_html(html)
        terminal.say(f"wrote `{html}`")
    if as_json:
        terminal.json(found.as_json())
    else:
        show(terminal, found)
    return _verdict(terminal, found)


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
            return evaluate(models, options=options, watch=_watch(terminal, progress), **choices)
        except KeyboardInterrupt:
            terminal.say(f"what is finished is in `{choices['output']}`; the same command goes on from there")
            raise


def _watch(terminal: Terminal, progress: Progress) -> Watch:
    """Progress as a bar; as a line now and then where stderr is no terminal."""
    from ttac.evaluation.study import Watch

    if not progress.disable:
        tasks: list[Any] = []

        def expect(what: str, total: int) -> None:
            tasks.append(progress.add_task(what, total=total))

        return Watch(terminal.say, expect, lambda moved: progress.advance(tasks[-1], moved))
    lines = Lines(terminal.say)
    return Watch(terminal.say, lines.expect, lines.moved)


class Lines:
    """Progress for a log: what is done, of what, and how long the rest will take."""

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self.say, self.clock = say, clock
        self.what, self.total, self.done, self.start, self.told = "", 0, 0, 0.0, 0.0

    def expect(self, what: str, total: int) -> None:
        """A piece of work begins."""
        self.what, self.total, self.done = what, total, 0
        self.start = self.told = self.clock()

    def moved(self, count: int) -> None:
        """Some of it is done."""
        self.done += count
        now = self.clock()
        if now - self.told >= BETWEEN and self.done:
            self.told = now
            left = (now - self.start) / self.done * (self.total - self.done)
            self.say(f"{self.what}: {self.done} of {self.total}, about {left:.0f} s left")


def show(terminal: Terminal, found: Evaluation) -> None:
    """Print one table for each setting."""
    if found.results and not found.labelled:
        terminal.say("note: the samples have no labels; there are entropy and drift, but no error")
    for number, table in enumerate(found.tables()):
        if number:
            terminal.show()
        setting = table.setting
        title = f"{setting['model']}, {setting['protocol']}, {setting['order']}, batch {setting['batch']}"
        terminal.table([_figure(table), *(f"{method}>" for method in table.methods)], _rows(table), title=title)


def _figure(table: Table) -> str:
    return "error, %" if table.labelled else "entropy, nats"


def _rows(table: Table) -> list[list[str]]:
    """The table as text: the shifts, their mean, and the other figures."""

    def told(value: float | None, scale: float, digits: int) -> str:
        return "-" if value is None else f"{scale * value:.{digits}f}"

    scale, digits = (100, 1) if table.labelled else (1, 3)
    rows = [[name, *(told(row.get(m), scale, digits) for m in table.methods)] for name, row in table.errors.items()]
    totals = table.totals
    shown: list[tuple[str, str, float, int]] = [("mean", "error" if table.labelled else "entropy", scale, digits)]
    if table.labelled:
        shown += [("calibration error, %", "ece", 100, 1), ("entropy, nats", "entropy", 1, 3)]
    shown += [("drift from source, %", "drift", 100, 1), ("ms per sample", "ms_per_sample", 1, 3)]
    rows += [[title, *(told(totals[key][m], by, places) for m in table.methods)] for title, key, by, places in shown]
    if table.spread:
        rows.append(["deviation over seeds", *(told(table.spread.get(m), scale, digits + 1) for m in table.methods)])
    peaks = [totals["peak_bytes"][method] for method in table.methods]
    return [*rows, ["peak memory", *("-" if peak is None else format_size(int(peak)) for peak in peaks)]]


def _verdict(terminal: Terminal, found: Evaluation) -> int:
    """Tell what is missing; 0 if something was found, or nothing was wrong with the tool, else the reason's code."""
    reasons: dict[tuple[str, str], TtacError] = {
        (each.cell.subject.model, each.cell.subject.method): each.reason for each in found.missing
    }
    for (name, method), reason in reasons.items():
        terminal.say(f"not run: `{method}` on `{name}`: {reason.what}")
        for line in traceback.format_exception(reason):
            terminal.detail(line.rstrip())
    internal = [reason for reason in reasons.values() if reason.exit_code != 3]
    if internal:
        return internal[0].exit_code
    return 0 if found.results or not reasons else next(iter(reasons.values())).exit_code


COMMAND = evaluate
"""What `ttac.cli` calls."""
