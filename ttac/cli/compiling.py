"""`ttac compile`: a model, a method and a target in, a bundle out."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttac.cli.bundle_summary import contents, summary
from ttac.cli.common_options import CONTEXT, PATH, as_json, check_folders, compile_options, terminal, verbose
from ttac.cli.config_file import config_options, write_config
from ttac.cli.report_text import render
from ttac.cli.terminal import Terminal
from ttac.options import RULES, CompileOptions, emitted_folder

if TYPE_CHECKING:
    from ttac.runtime.bundle import Bundle


@click.command("compile", context_settings=CONTEXT)
@click.argument("path", metavar="MODEL.onnx", type=PATH)
@compile_options(*RULES)
@config_options
@as_json
@verbose
@terminal
def compile_command(terminal: Terminal, /, path: Path, save_config: Path | None, as_json: bool, **choices: Any) -> None:
    """Compile MODEL.onnx into a bundle and print the bundle's path."""
    check_folders(save_config)
    options = CompileOptions.from_mapping(path, choices)
    bundle = _compile(terminal, options)
    if save_config is not None:
        write_config(click.get_current_context(), save_config)
    if as_json:
        terminal.json(contents(bundle))
    elif options.dry_run:
        render(terminal, {key: value for key, value in summary(bundle).items() if key != "rooms"})
    else:
        terminal.data(str(bundle.path))
    if not options.dry_run:
        terminal.say(f"the bundle runs on {options.target.runs_on} of: {options.target.title}")
        if (folder := emitted_folder(options.output, options.emit)) is not None:
            terminal.say(f"files of onnxruntime-training: {folder}")
        terminal.say(f"next: ttac run {bundle.path} SAMPLES.npz")


def _compile(terminal: Terminal, options: CompileOptions) -> Bundle:
    """Call the driver, imported only for options that are right; stdout of libraries goes to stderr."""
    from ttac.pipeline import compile_with
    from ttac.reports.progress import ROOMS, room_after

    with redirect_stdout(sys.stderr), terminal.working(ROOMS[0]) as show:

        def say(line: str) -> None:
            terminal.say(line)
            if room := room_after(line):
                show(room)

        return compile_with(options, say)
