"""`ttac demo`: the effect of adaptation on a small real model and real images that ship with ttac."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from ttac.cli.common_options import CONTEXT, PATH, as_json, terminal, verbose
from ttac.cli.terminal import Terminal
from ttac.errors import RuntimeMissingError, UsageError
from ttac.methods import COMPARED
from ttac.runtime.whole_file import write_whole

if TYPE_CHECKING:
    from ttac.demo.show import DemoErrors

COLOURS = dict(zip(COMPARED, ("red", "yellow", "green"), strict=True))
"""Method -> colour of its bar."""
FILES = {
    "model.onnx": "fashion_resnet_bn.onnx",
    "calibration.npz": "fashion_calibration.npz",
    "stream.npz": "fashion_stream.npz",
}
"""Shipped files that `--files` copies, by the name of the copy."""
WIDTH = 40
"""Columns of the longest bar."""


@click.command(
    "demo",
    context_settings=CONTEXT,
    short_help="Show the effect of adaptation on a model and data that ship with ttac.",
)
@click.option("--png", metavar="FILE", type=PATH, help="Also write the comparison as a bar chart.")
@click.option("--files", metavar="DIR", type=PATH, help="Only copy model, calibration and stream to this folder.")
@as_json
@verbose
@terminal
def demo(terminal: Terminal, png: Path | None, files: Path | None, as_json: bool) -> None:
    """Compile a shipped classifier with `source`, `bn` and `tent`, and compare them on corrupted images."""
    if files is not None:
        for path in copied(files):
            terminal.data(str(path))
        terminal.say(f"next: ttac compile {files / 'model.onnx'} --calibration {files / 'calibration.npz'}")
        return
    if png is not None and find_spec("matplotlib") is None:
        raise RuntimeMissingError("`--png` needs matplotlib", hint="`pip install matplotlib`")
    from ttac.demo import show

    with redirect_stdout(sys.stderr), terminal.progress() as progress:
        total = len(COMPARED) * sum(stream.count for stream in show.shifts().values())
        task = progress.add_task("images", total=total)
        result = show.compare(terminal.say, lambda count: progress.advance(task, count))
    terminal.say(
        f"{result.samples} images a method, batch {show.BATCH}, a reset to the source before each corruption; "
        f"{result.seconds:.0f} s in all"
    )
    if as_json:
        terminal.json(result.as_json())
    else:
        report(terminal, result)
    if png is not None:
        show.plot(result, png)
        terminal.say(f"wrote `{png}`")
    terminal.say("next: ttac demo --files try")


def copied(folder: Path) -> list[Path]:
    """Copy the shipped files into `folder` and return the copies.

    Raises UsageError if other files have these names, or the copies cannot be written.
    """
    from ttac import demo

    folder.mkdir(parents=True, exist_ok=True)
    contents = {folder / name: demo.file(shipped).read_bytes() for name, shipped in FILES.items()}
    for path, content in contents.items():
        if path.exists() and (not path.is_file() or path.read_bytes() != content):
            raise UsageError("another file has this name", where=f"`{path}`", hint="give an empty folder")
    for path, content in contents.items():
        write_whole(path, [content])
    return list(contents)


def report(terminal: Terminal, result: DemoErrors) -> None:
    """Print the errors as a table and as bars."""
    _table(terminal, result)
    _bars(terminal, result)


def _table(terminal: Terminal, result: DemoErrors) -> None:
    rows = [[name, *(f"{100 * row[m]:.1f}" for m in COMPARED)] for name, row in result.errors.items()]
    rows.append(["mean of corruptions", *(f"{100 * result.mean(m):.1f}" for m in COMPARED)])
    rows.append(["ms per image", *(f"{result.milliseconds[m]:.2f}" for m in COMPARED)])
    terminal.table(["error, %", *(f"{method}>" for method in COMPARED)], rows)


def _bars(terminal: Terminal, result: DemoErrors) -> None:
    from ttac.demo.show import bar

    full = max(error for row in result.errors.values() for error in row.values())
    ascii_only = not terminal.out.encoding.lower().startswith("utf")
    longest = max(map(len, result.errors))
    for name, row in result.errors.items():
        terminal.show()
        for position, method in enumerate(COMPARED):
            label = f"{name if position == 0 else '':{longest}}  {method:6}  "
            filled = (bar(row[method], full, WIDTH, ascii_only=ascii_only), COLOURS[method])
            terminal.show(Text.assemble(label, filled, f" {100 * row[method]:.1f}"))
