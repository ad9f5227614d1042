"""The two streams of a command: data on stdout; talk and errors on stderr.  Both are readable without colour."""

from __future__ import annotations

import errno
import json
import math
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ttac.errors import TtacError, UsageError

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal may obey: C0 and C1 controls and changes of the writing direction."""
PIPED_WIDTH = 1000
"""Characters of a line in a file or a pipe: more than any table has, so that no line is wrapped."""


FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""Errors of the system for a full disk, a file above the limit, and a used quota."""


@contextmanager
def writing_stdout() -> Iterator[None]:
    """Raise UsageError where the block cannot write to stdout, because the disk behind stdout is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        hint = "free space where the output is redirected to"
        raise UsageError(f"cannot write the output: {error.strerror}", where="stdout", hint=hint) from error


class Terminal:
    """The two streams of one command, and its words; the option `-v` sets `verbose`."""

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self.verbose = False
        self.command = shlex.join(["ttac", *arguments])
        self.out = _console(stderr=False)
        self.talk = _console(stderr=True)

    def data(self, text: str) -> None:
        """Print `text` on stdout, neither wrapped nor coloured."""
        with writing_stdout():
            sys.stdout.write(visible(text) + "\n")

    def json(self, value: Any) -> None:
        """Print `value` on stdout as indented JSON; NaN and infinity, which JSON does not have, become null."""
        self.data(json.dumps(finite(value), indent=2, allow_nan=False))

    def show(self, content: RenderableType = "") -> None:
        """Print an object of rich on stdout; in a file or a pipe without the spaces that fill a line."""
        if self.out.is_terminal:
            self.out.print(content)
            return
        with writing_stdout(), self.out.capture() as captured:
            self.out.print(content)
        self.data("\n".join(line.rstrip() for line in captured.get().removesuffix("\n").split("\n")))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> None:
        """Print rows on stdout; a column whose name ends in `>` is aligned to the right."""
        if title:
            self.show(Text(title, style="bold"))
        self.show(table(columns, rows))

    def facts(self, pairs: Mapping[str, Any]) -> None:
        """Print names and values on stdout, one pair per line, values aligned."""
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in pairs.items():
            grid.add_row(visible(name), visible(str(value)))
        self.show(grid)

    def say(self, line: str = "") -> None:
        """Print a line of talk on stderr."""
        self.talk.print(visible(line), soft_wrap=True)

    def detail(self, line: str) -> None:
        """Print a line of talk that only `-v` shows."""
        if self.verbose:
            self.say(line)

    def progress(self) -> Progress:
        """A progress bar on stderr; invisible where stderr is no terminal."""
        text, times = TextColumn("{task.description}"), (TimeElapsedColumn(), TimeRemainingColumn())
        columns = (text, BarColumn(), MofNCompleteColumn(), *times)
        return Progress(*columns, console=self.talk, transient=True, disable=not self.talk.is_terminal)

    @contextmanager
    def working(self, name: str) -> Iterator[Callable[[str], None]]:
        """Show `name` and the elapsed seconds on stderr; yields a function that changes the name.

        Nothing is shown where stderr is no terminal.
        """
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.talk, transient=True, disable=not self.talk.is_terminal) as progress:
            task = progress.add_task(name)
            yield lambda text: progress.update(task, description=text)

    def error(self, error: TtacError, cause: BaseException | None = None) -> None:
        """Print an error with its place and its hint; with `-v`, print the traceback of `cause` before."""
        if self.verbose:
            sys.stderr.write("".join(traceback.format_exception(cause or error)))
        self._labelled("error: ", "bold red", error.problem)
        if error.where:
            self.say(f"  at {error.where}")
        if error.hint:
            self.say()
            self._labelled("hint: ", "bold cyan", error.hint)

    def _labelled(self, label: str, style: str, text: str) -> None:
        self.talk.print(Text.assemble((label, style), visible(text)), soft_wrap=True)


def visible(text: str) -> str:
    r"""Return `text` with every control character but newline and tab written as an escape, `\x1b`.

    Names come from files of strangers: a terminal must not obey the sequences in them.
    """
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table without lines; a column whose name ends in `>` is aligned to the right."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        grid.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else visible(str(cell)) for cell in row))
    return grid


def finite(value: Any) -> Any:
    """Return a JSON value with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console
