"""`ttac bake`: the adapted state back into a plain inference model."""

from __future__ import annotations

from pathlib import Path

import click

from ttac.cli.options import CONTEXT, PATH, terminal, verbose
from ttac.cli.terminal import Terminal


@click.command("bake", context_settings=CONTEXT)
@click.argument("bundle", type=PATH)
@click.option("--state", metavar="FILE", type=PATH, required=True, help="The state `ttac run --save-state` wrote.")
@click.option("-o", "--output", metavar="OUT.onnx", type=PATH, required=True, help="The model to write.")
@verbose
@terminal
def bake(terminal: Terminal, bundle: Path, state: Path, output: Path) -> None:
    """Fold an adapted state into a plain ONNX model and print its path."""
    from ttac.bake import bake as fold

    baked = fold(bundle, state, output)
    counts = ", ".join(f"{count} {role} tensors" for role, count in baked.replaced.items() if count)
    terminal.say(f"baked {counts or 'nothing: this method keeps no state'}; one sample gives {list(baked.probe)}")
    if baked.source_statistics:
        count = len(baked.source_statistics)
        terminal.say(f"warning: {count} norm sites keep the source statistics, the state tracks no others")
    terminal.data(str(output))
