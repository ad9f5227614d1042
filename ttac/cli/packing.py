"""`ttac pack`: a bundle as one file."""

from __future__ import annotations

from pathlib import Path

import click

from ttac.cli.common_options import CONTEXT, PATH, check_folders, terminal, verbose
from ttac.cli.terminal import Terminal


@click.command("pack", context_settings=CONTEXT)
@click.argument("bundle", type=PATH)
@click.option("-o", "--output", metavar="FILE.ttac", type=PATH, required=True, help="The file to write.")
@verbose
@terminal
def pack(terminal: Terminal, bundle: Path, output: Path) -> None:
    """Write a bundle's folder as one file, and print the path of the file.

    Every command and `ttac.load` take the file in place of the folder. It is a zip without compression, and nothing
    unpacks it: the engine maps the weights where they lie. `unzip` restores the folder.
    """
    from ttac.runtime.bundle import pack as write

    check_folders(output)
    write(bundle, output)
    terminal.say(f"{output.stat().st_size:,} bytes; next: ttac run {output} SAMPLES.npz")
    terminal.data(str(output))
