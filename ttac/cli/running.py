"""`ttac run`: a stream of samples through a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttac.cli.common_options import CONTEXT, PATH, as_json, check_folders, count, terminal, verbose
from ttac.cli.terminal import Terminal
from ttac.errors import TtacError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from ttac.runtime.adapter import Adapter
    from ttac.runtime.events import Event
    from ttac.runtime.records import HeadSpec, TensorSpec
    from ttac.runtime.source_monitor import SourceMonitor
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
@click.option(
    "--compare-source", metavar="K", callback=count(), help="Compare every K-th batch with the source; 20 costs 2 %."
)
@click.option("--threads", metavar="N", callback=count(low=0), help="Engine threads; 0: the engine's choice.")
@click.option(
    "--providers",
    metavar="P,...",
    help="Execution providers of the engine, best first, as `cuda,cpu`.  [default: the target's]",
)
@as_json
@verbose
@terminal
def run(terminal: Terminal, /, bundle: Path, samples: Path, output: Path | None, as_json: bool, **choices: Any) -> None:
    """Stream INPUT (.npz, .npy or a folder of images) through BUNDLE and report time, entropy and error.

    A model of several inputs takes an `.npz` with an array by the name of each input.

    The error needs an array `labels` in the `.npz` (labels [n], or [n, H, W] for a dense head) or a folder with one
    sub-folder for each class. OUT.npz holds the array `logits`, or for a model of several outputs each by its name. For
    a folder, the array `files` has the names.
    """
    check_folders(output, choices["save_state"])
    outcome, names, compared = _stream(terminal, bundle, samples, output is not None, RunChoices(**choices))
    summary = {**outcome.summary(), **compared}
    if output is not None:
        assert outcome.outputs is not None
        arrays = outcome.outputs
        import numpy as np

        files = {"files": np.array(names)} if names else {}
        save_arrays(output, {**files, **(arrays if len(arrays) > 1 else {"logits": next(iter(arrays.values()))})})
        summary["output"] = str(output)
    if choices["save_state"]:
        summary["state"] = str(choices["save_state"])
    if as_json:
        terminal.json(summary)
    else:
        for rate in ("error", "estimated_error"):
            if rate in summary:
                summary[rate] = f"{summary[rate]:.2%}".replace("%", " %")
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
    compare_source: int | None
    threads: int | None
    providers: str | None


def _stream(
    terminal: Terminal, bundle: Path, samples: Path, keep: bool, choices: RunChoices
) -> tuple[Outcome, tuple[str, ...], dict[str, Any]]:
    """Run the stream.

    Returns the outcome, with outputs if `keep`, the names of the files of a folder, and the figures of the comparison
    with the source.
    """
    from ttac.runtime import SourceMonitor, load
    from ttac.runtime.manifest import parse_manifest
    from ttac.runtime.providers import parse_providers
    from ttac.samples.streaming import run_stream

    providers = None if choices.providers is None else parse_providers(choices.providers)
    adapter = load(bundle, threads=choices.threads, providers=providers)
    manifest = adapter.bundle.manifest
    size = _size(manifest, choices.batch)
    head = parse_manifest(manifest).head
    stream = _labelled(terminal, _open(terminal, manifest, samples, choices.array), manifest, head)
    _prepare(adapter, choices)
    every = choices.compare_source
    monitor = SourceMonitor(bundle, every, threads=adapter.threads) if every else None
    if terminal.talk.is_terminal:
        adapter.on_event = _said_once(terminal)
    with _saved_at_a_stop(terminal, adapter, choices.save_state), terminal.progress() as progress:
        task = progress.add_task("predicting" if choices.no_adapt else "adapting", total=stream.count)
        outcome = run_stream(
            _Compared(adapter, monitor) if monitor else adapter,
            stream,
            batch=size,
            smallest=int(manifest["batch"]["smallest"]),
            adapt=not choices.no_adapt,
            head=head,
            keep=keep,
            moved=lambda count: progress.advance(task, count),
        )
    if choices.save_state is not None:
        adapter.save(choices.save_state)
    _say_held(terminal, outcome)
    return outcome, stream.names, monitor.stats if monitor else {}


@dataclass(frozen=True)
class _Compared:
    """An adapter whose steps a monitor compares with the source."""

    adapter: Adapter
    monitor: SourceMonitor

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self.adapter.outputs

    @property
    def stats(self) -> Mapping[str, Any]:
        return self.adapter.stats

    def step(self, x: np.ndarray) -> Any:
        outputs = self.adapter.step(x)
        self.monitor.look(x, outputs)
        return outputs

    def predict(self, x: np.ndarray) -> Any:
        return self.adapter.predict(x)


def _prepare(adapter: Adapter, choices: RunChoices) -> None:
    """Restore the state to start from, and begin to save."""
    if choices.state is not None:
        adapter.restore(choices.state)
    if choices.save_state is not None and choices.save_every is not None:
        adapter.autosave(choices.save_state, every=choices.save_every)


def _say_held(terminal: Terminal, outcome: Outcome) -> None:
    if outcome.held:
        resets = f", and reset the state {outcome.guard_resets} times" if outcome.guard_resets else ""
        terminal.say(f"note: the guard predicted {outcome.held} batches without learning from them{resets}")


def _said_once(terminal: Terminal) -> Callable[[Event], None]:
    """A function of an event that prints the first one; later holds are counted in the summary."""
    said: list[Event] = []

    def say(event: Event) -> None:
        if not said:
            terminal.say(f"note: {event}")
        said.append(event)

    return say


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
    from ttac.samples.doubts import SEEN, doubts
    from ttac.samples.images import open_stream, preparation
    from ttac.samples.named_arrays import named_stream, sample_shape, with_sizes

    entry, *others = manifest["inputs"]
    if others or entry["shape"][0] != "N":
        return named_stream(samples, manifest["inputs"])
    entry = with_sizes(entry, manifest, sample_shape(samples, array) if manifest.get("sizes") else ())
    how = preparation(entry["shape"], manifest["preprocessing"], entry["dtype"])
    stream = open_stream(samples, how, array)
    if stream.array and array is None:
        terminal.say(f"note: the samples are the array `{stream.array}`; `--array` names another")
    if not stream.prepared and not how.known:
        terminal.say("note: the bundle does not say how pixels are prepared (`--pixels`); pixels are scaled to [0, 1]")
    for doubt in doubts(stream.read(0, min(SEEN, stream.count)), how) if stream.prepared else ():
        terminal.say(f"note: {doubt}")
    return stream


def _labelled(terminal: Terminal, stream: Stream, manifest: Mapping[str, Any], head: HeadSpec | None) -> Stream:
    """Return the stream without labels where they cannot be compared with the predictions, and say why."""
    if stream.labels is None:
        return stream
    if head is None:
        terminal.say("note: no error: the bundle does not say how its output is read; compile with `--head`")
        return stream
    if not stream.classes:
        return stream
    count = _class_count(manifest, head)
    if head.kind == "classes" and count == len(stream.classes):
        return stream
    said = f"{len(stream.classes)} sub-folders, the model {count or 'no'} classes"
    terminal.say(f"note: no error: the folder has {said}; the folder needs one sub-folder for each class")
    return replace(stream, labels=None)


def _class_count(manifest: Mapping[str, Any], head: HeadSpec) -> int | None:
    """Number of classes along the head's axis, None where the output leaves it open or has no such axis."""
    shape: list[Any] = next((spec["shape"] for spec in manifest["outputs"] if spec["name"] == head.output), [])
    size = shape[head.axis] if head.axis is not None and head.axis < len(shape) else None
    return size if isinstance(size, int) else None


def save_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Write an `.npz`: the whole file, or none."""
    import numpy as np

    from ttac.runtime.whole_file import new_file

    with new_file(file) as stream:
        np.savez(stream, **{name: arrays[name] for name in arrays})
