"""`ttac bake`: the adapted state folded into an inference model."""

from __future__ import annotations

from pathlib import Path

import click

from ttac.cli.common_options import CONTEXT, PATH, terminal, verbose
from ttac.cli.terminal import Terminal
from ttac.errors import UsageError


@click.command("bake", context_settings=CONTEXT)
@click.argument("bundle", type=PATH)
@click.option("--state", metavar="FILE", type=PATH, required=True, help="The state from `ttac run --save-state`.")
@click.option("-o", "--output", metavar="OUT.onnx", type=PATH, required=True, help="The model to write.")
@click.option("--samples", metavar="FILE", type=PATH, help="Compare with the source on these samples.")
@click.option("--force", is_flag=True, help="Write a model that would be refused.")
@verbose
@terminal
def bake(terminal: Terminal, bundle: Path, state: Path, output: Path, samples: Path | None, force: bool) -> None:
    """Fold an adapted state into an ONNX model for inference and print the model's path.

    FILE is an .npz, an .npy or a folder of images. With the array `labels`, a model that errs on 2 % more of the
    samples than the source is refused; without, a model with half of the source's information or less. Without
    --samples, the calibration samples of the bundle judge the trained tensors, where the guard has kept some, and a
    state whose statistics average fewer than 10 batches is refused.
    """
    from ttac.bake import bake as fold

    _refuse_source(bundle, output)
    baked = fold(bundle, state, output, samples, force=force)
    counts = ", ".join(f"{count} {role} tensors" for role, count in baked.replaced.items() if count)
    terminal.say(f"baked {counts or 'nothing: this method keeps no state'}; one sample gives {list(baked.probe)}")
    if baked.source_statistics:
        count = len(baked.source_statistics)
        terminal.say(f"warning: {count} norm sites keep the source statistics, the state tracks no others")
    compared = baked.comparison.text if baked.comparison else "the model is not compared with the source (`--samples`)"
    terminal.say(f"{'' if baked.comparison else 'warning: '}{compared}")
    terminal.data(str(output))


def _refuse_source(bundle: Path, output: Path) -> None:
    """Raise UsageError if `output` is the source model of the bundle, or lies in the bundle."""
    from ttac.runtime.bundle import read_manifest
    from ttac.runtime.hash_check import digest_of

    hint = "give another name with `-o`"
    if bundle.resolve() in (output.resolve(), *output.resolve().parents):
        raise UsageError("the output lies in the bundle", where=f"`{output}`", hint=hint)
    if output.is_file() and digest_of(output) == read_manifest(bundle)["source"]["sha256"]:
        raise UsageError("the source model would be overwritten", where=f"`{output}`", hint=hint)
