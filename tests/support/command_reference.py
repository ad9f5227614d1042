"""Write `docs/commands.md`, the reference of the command line, from the commands themselves.

python -m tests.support.command_reference
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from tests.support.import_graph import ROOT
from ttac.cli import commands

PAGE = ROOT / "docs" / "commands.md"
INTRODUCTION = """\
# Commands

`python -m tests.support.command_reference` makes this page from the commands. `ttac COMMAND --help` prints the same text.

* Results go to stdout; progress, notes and errors go to stderr.
* `--json` exists on every command that reports, `-v` on every command. `NO_COLOR` is respected.

| exit code | meaning |
|---:|---|
| 0 | ok, also when the reader of a pipe stops, as `head` does |
| 1 | internal error |
| 2 | wrong usage |
| 3 | model or operator not supported |
| 4 | memory budget not met |
| 5 | environment or runtime missing |
| 6 | verification failed |
| 130 | stopped with Ctrl-C |
"""


def reference() -> str:
    """Text of the page."""
    return "\n".join([INTRODUCTION, *(section(context) for context in contexts())])


def contexts() -> Iterator[click.Context]:
    """A context of each command, in the order of `ttac --help`."""
    for name, command in commands.commands.items():
        yield command.make_context(f"ttac {name}", [], resilient_parsing=True)


def section(context: click.Context) -> str:
    """Usage, description and options of one command."""
    command = context.command
    usage = f"{context.info_name} {' '.join(command.collect_usage_pieces(context))}"
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [f"| `{cell(names)}` | {cell(text)} |" for names, text in filter(None, records)]
    table = ["| option | meaning |", "|---|---|", *rows]
    return "\n".join(
        [f"## {context.info_name}", "", f"```text\n{usage}\n```", "", description(command), "", *table, ""]
    )


def description(command: click.Command) -> str:
    """The help of the command; a paragraph behind `\\b` keeps its lines."""
    paragraphs = inspect.cleandoc(command.help or command.short_help or "").split("\n\n")
    return "\n\n".join(paragraph(text) for text in paragraphs)


def paragraph(text: str) -> str:
    if text.startswith("\b\n"):
        return f"```text\n{text[2:]}\n```"
    return " ".join(text.split())


def cell(text: str) -> str:
    """The text on one line, safe in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
