"""`ttac run`: a stream of samples through a bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttac.cli.options import CONTEXT, PATH, as_json, count, terminal, verbose
from ttac.cli.terminal import Terminal
from ttac.errors import UsageError

if TYPE_CHECKING:
    from ttac.runtime.records import HeadSpec
    from ttac.samples.images import Stream
    from ttac.samples.streaming import Outcome


@click.command("run", context_settings=CONTEXT, short_help="Stream samples through a bundle.")
@click.argument("bundle", type=PATH)
@click.argument("samples", metavar="INPUT", type=PATH)
@click.option("-o", "--output", metavar="OUT.npz", type=PATH, help="Write the logits here.")
@click.option("--state", metavar="FILE", type=PATH, help="Start from this state.")
@click.option("--save-state", metavar="FILE", type=PATH, help="Write the adapted state here.")
@click.option("--no-adapt", is_flag=True, help="Predict with the state as it is, change nothing.")
@click.option("--array", metavar="NAME", help="The array of an `.npz` to stream.  [default: its first]")
@click.option("--batch", metavar="N", callback=count(), help="Samples per step.  [default: the planned batch]")
@click.option("--threads", metavar="N", callback=count(low=0), help="Engine threads; 0 leaves it to the engine.")
@as_json
@verbose
@terminal
def run(terminal: Terminal, /, bundle: Path, samples: Path, output: Path | None, as_json: bool, **choices: Any) -> None:
    """Stream INPUT (.npz, .npy or a folder of images) through BUNDLE and report what came of it.

    With an array `labels` in the `.npz`, the error is reported too: labels [n], or [n, H, W] of a dense head.
    """
    for file in (output, choices["save_state"]):
        if file is not None and not file.resolve().parent.is_dir():
            raise UsageError("the folder does not exist", where=f"`{file}`", hint=f"`mkdir -p {file.parent}`")
    outcome = _stream(terminal, bundle, samples, keep=output is not None, **choices)
    summary = outcome.summary()
    if output is not None:
        assert outcome.logits is not None
        save_arrays(output, logits=outcome.logits)
        summary["output"] = str(output)
    if choices["save_state"]:
        summary["state"] = str(choices["save_state"])
    if as_json:
        terminal.json(summary)
    else:
        terminal.facts({name.replace("_", " "): value for name, value in summary.items()})


def _stream(
    terminal: Terminal,
    bundle: Path,
    samples: Path,
    *,
    keep: bool,
    state: Path | None,
    save_state: Path | None,
    no_adapt: bool,
    array: str | None,
    batch: int | None,
    threads: int | None,
) -> Outcome:
    from ttac.runtime import load
    from ttac.runtime.bundle import read_manifest
    from ttac.samples.streaming import run_stream

    manifest = read_manifest(bundle)
    size = _size(manifest, batch)
    stream = _open(terminal, manifest, samples, array)
    adapter = load(bundle, threads=threads)
    if state is not None:
        adapter.restore(state)
    with terminal.progress() as progress:
        task = progress.add_task("predicting" if no_adapt else "adapting", total=stream.count)
        outcome = run_stream(
            adapter,
            stream,
            batch=size,
            smallest=int(manifest["batch"]["smallest"]),
            adapt=not no_adapt,
            head=_head(terminal, manifest, stream),
            keep=keep,
            moved=lambda count: progress.advance(task, count),
        )
    if save_state is not None:
        adapter.save(save_state)
    return outcome


def _size(manifest: Mapping[str, Any], batch: int | None) -> int:
    """Samples a step: as asked, or as planned; raises UsageError for more than that."""
    planned = int(manifest["batch"]["planned"])
    if batch is not None and batch > planned:
        hint = f"compile with `--batch {batch}`"
        raise UsageError(f"the bundle is planned for {planned} samples a step", where=f"`--batch {batch}`", hint=hint)
    return batch or planned


def _open(terminal: Terminal, manifest: Mapping[str, Any], samples: Path, array: str | None) -> Stream:
    from ttac.samples.images import open_stream, preparation

    how = preparation(manifest["inputs"][0]["shape"], manifest["preprocessing"])
    stream = open_stream(samples, how, array)
    if not stream.prepared and not how.known:
        terminal.say("note: the bundle does not say how pixels are prepared (`--pixels`); they are scaled to [0, 1]")
    return stream


def _head(terminal: Terminal, manifest: Mapping[str, Any], stream: Stream) -> HeadSpec | None:
    from ttac.runtime.manifest import parse_manifest

    head = parse_manifest(manifest).head
    if head is None and stream.labels is not None:
        terminal.say("note: no error: the bundle does not say how its output is read; compile it with `--head`")
    return head


def save_arrays(file: Path, **arrays: Any) -> None:
    """Write an `.npz` that is either whole or not there."""
    import numpy as np

    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
