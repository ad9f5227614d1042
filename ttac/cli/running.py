"""`ttac run`: a stream of samples through a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttac.cli.common_options import CONTEXT, PATH, as_json, check_folders, count, terminal, verbose
from ttac.cli.terminal import Terminal
from ttac.errors import TtacError, UsageError

if TYPE_CHECKING:
    from ttac.runtime.adapter import Adapter
    from ttac.runtime.records import HeadSpec
    from ttac.samples.images import Stream
    from ttac.samples.streaming import Outcome


@click.command("run", context_settings=CONTEXT, short_help="Stream samples through a bundle.")
@click.argument("bundle", type=PATH)
@click.argument("samples", metavar="INPUT", type=PATH)
@click.option("-o", "--output", metavar="OUT.npz", type=PATH, help="Write the outputs here.")
@click.option("--state", metavar="FILE", type=PATH, help="Start from this state.")
@click.option("--save-state", metavar="FILE", type=PATH, help="Write the adapted state here.")
@click.option(
    "--save-every", metavar="K", callback=count(), help="Also write the state after each K steps, for `--save-state`."
)
@click.option("--no-adapt", is_flag=True, help="Predict with the unchanged state.")
@click.option("--array", metavar="NAME", help="The array of an `.npz` to stream.  [default: its first]")
@click.option("--batch", metavar="N", callback=count(), help="Samples per step.  [default: the planned batch]")
@click.option("--threads", metavar="N", callback=count(low=0), help="Engine threads; 0: the engine's choice.")
@as_json
@verbose
@terminal
def run(terminal: Terminal, /, bundle: Path, samples: Path, output: Path | None, as_json: bool, **choices: Any) -> None:
    """Stream INPUT (.npz, .npy or a folder of images) through BUNDLE and report time, entropy and error.

    The error needs an array `labels` in the `.npz`: labels [n], or [n, H, W] for a dense head. OUT.npz holds the array
    `logits`, or for a model of several outputs each by its name.
    """
    check_folders(output, choices["save_state"])
    outcome = _stream(terminal, bundle, samples, output is not None, RunChoices(**choices))
    summary = outcome.summary()
    if output is not None:
        assert outcome.outputs is not None
        arrays = outcome.outputs
        save_arrays(output, arrays if len(arrays) > 1 else {"logits": next(iter(arrays.values()))})
        summary["output"] = str(output)
    if choices["save_state"]:
        summary["state"] = str(choices["save_state"])
    if as_json:
        terminal.json(summary)
    else:
        terminal.facts({name.replace("_", " "): value for name, value in summary.items()})


@dataclass(frozen=True, kw_only=True)
class RunChoices:
    """The options of `ttac run` that concern the stream."""

    state: Path | None
    save_state: Path | None
    save_every: int | None
    no_adapt: bool
    array: str | None
    batch: int | None
    threads: int | None


def _stream(terminal: Terminal, bundle: Path, samples: Path, keep: bool, choices: RunChoices) -> Outcome:
    """Run the stream; the outcome holds the outputs if `keep`."""
    from ttac.runtime import load
    from ttac.runtime.bundle import read_manifest
    from ttac.samples.streaming import run_stream

    manifest = read_manifest(bundle)
    size = _size(manifest, choices.batch)
    stream = _open(terminal, manifest, samples, choices.array)
    adapter = load(bundle, threads=choices.threads)
    if choices.state is not None:
        adapter.restore(choices.state)
    if choices.save_state is not None and choices.save_every is not None:
        adapter.autosave(choices.save_state, every=choices.save_every)
    with _saved_at_a_stop(terminal, adapter, choices.save_state), terminal.progress() as progress:
        task = progress.add_task("predicting" if choices.no_adapt else "adapting", total=stream.count)
        outcome = run_stream(
            adapter,
            stream,
            batch=size,
            smallest=int(manifest["batch"]["smallest"]),
            adapt=not choices.no_adapt,
            head=_head(terminal, manifest, stream),
            keep=keep,
            moved=lambda count: progress.advance(task, count),
        )
    if choices.save_state is not None:
        adapter.save(choices.save_state)
    return outcome


@contextmanager
def _saved_at_a_stop(terminal: Terminal, adapter: Adapter, file: Path | None) -> Iterator[None]:
    """Write the adapted state to `file` if Ctrl-C or an error ends the stream."""
    try:
        yield
    except (KeyboardInterrupt, TtacError):
        if file is not None and adapter.stats["steps"]:
            adapter.save(file)
            terminal.say(f"note: the state after {adapter.stats['samples']} samples is in `{file}`")
        raise


def _size(manifest: Mapping[str, Any], batch: int | None) -> int:
    """Return the number of samples of a step; raises UsageError for more than the bundle is planned for."""
    planned = int(manifest["batch"]["planned"])
    if batch is not None and batch > planned:
        hint = f"compile with `--batch {batch}`"
        raise UsageError(f"the bundle is planned for {planned} samples a step", where=f"`--batch {batch}`", hint=hint)
    return batch or planned


def _open(terminal: Terminal, manifest: Mapping[str, Any], samples: Path, array: str | None) -> Stream:
    from ttac.samples.images import open_stream, preparation

    how = preparation(manifest["inputs"][0]["shape"], manifest["preprocessing"], manifest["inputs"][0]["dtype"])
    stream = open_stream(samples, how, array)
    if not stream.prepared and not how.known:
        terminal.say("note: the bundle does not say how pixels are prepared (`--pixels`); pixels are scaled to [0, 1]")
    return stream


def _head(terminal: Terminal, manifest: Mapping[str, Any], stream: Stream) -> HeadSpec | None:
    from ttac.runtime.manifest import parse_manifest

    head = parse_manifest(manifest).head
    if head is None and stream.labels is not None:
        terminal.say("note: no error: the bundle does not say how its output is read; compile with `--head`")
    return head


def save_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Write an `.npz`: the whole file, or none."""
    import numpy as np

    from ttac.runtime.whole_file import new_file

    with new_file(file) as stream:
        np.savez(stream, **{name: arrays[name] for name in arrays})
