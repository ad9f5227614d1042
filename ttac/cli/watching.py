"""`ttac watch`: a bundle adapts to images as they arrive, and the terminal shows how it fares."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttac.cli.common_options import CONTEXT, PATH, as_json, check_folders, count, terminal, verbose
from ttac.cli.terminal import Terminal, finite
from ttac.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import RenderableType

    from ttac.reports.live_figures import LiveFigures
    from ttac.runtime.adapter import Adapter
    from ttac.samples.images import Preparation

BARS, WIDTH = 10, 40
"""Classes in the histogram, and characters of a bar for all predictions."""


@click.command("watch", context_settings=CONTEXT)
@click.argument("bundle", type=PATH)
@click.argument("source")
@click.option("--batch", metavar="N", callback=count(), help="Images per step.  [default: the planned batch]")
@click.option("--idle", metavar="S", type=float, help="End after S seconds without a new image.")
@click.option("--no-adapt", is_flag=True, help="Predict with the unchanged state.")
@click.option("--state", metavar="FILE", type=PATH, help="Start from this state.")
@click.option("--save-state", metavar="FILE", type=PATH, help="Write the adapted state here at the end.")
@click.option("--prometheus", metavar="PORT", callback=count(), help="Serve the figures at this port, on loopback.")
@click.option("--threads", metavar="N", callback=count(low=0), help="Engine threads; 0: the engine's choice.")
@as_json
@verbose
@terminal
def watch(terminal: Terminal, /, bundle: Path, source: str, as_json: bool, **choices: Any) -> None:
    """Adapt BUNDLE to the images of SOURCE as they arrive, and show time, entropy, classes and guard.

    SOURCE is a folder that fills (sub-folders count), a video file, or a camera such as `camera:0`. A video needs PyAV
    or OpenCV.
    Ctrl-C ends the stream. In a pipe, each step is a line; with `--json`, a line of JSON.
    """
    check_folders(choices["save_state"])
    from ttac.runtime import load

    with load(bundle, threads=choices["threads"]) as adapter, ExitStack() as stack:
        if choices["state"] is not None:
            adapter.restore(choices["state"])
        session = WatchSession(terminal, adapter, as_json, not choices["no_adapt"])
        if choices["prometheus"]:
            terminal.say(f"metrics: {session.serve(stack, choices['prometheus'])}")
        try:
            session.follow(source, _size(adapter, choices["batch"]), choices["idle"])
        except KeyboardInterrupt:
            terminal.say("stopped")
        if choices["save_state"] is not None:
            adapter.save(choices["save_state"])
        figures = session.figures
        terminal.say(f"{figures.samples} images, {figures.steps} steps; the guard {figures.guard}")


def _size(adapter: Adapter, batch: int | None) -> int:
    if batch is not None and not adapter.smallest_batch <= batch <= adapter.batch:
        problem = f"the bundle takes {adapter.smallest_batch} to {adapter.batch} samples a step"
        raise UsageError(problem, where=f"`--batch {batch}`", hint=f"compile with `--batch {batch}`")
    return batch or adapter.batch


@dataclass
class WatchSession:
    """A stream under way."""

    terminal: Terminal
    adapter: Adapter
    as_json: bool
    adapts: bool

    def __post_init__(self) -> None:
        from ttac.reports.live_figures import Exporter, LiveFigures
        from ttac.runtime.manifest import parse_manifest

        self.manifest = parse_manifest(self.adapter.bundle.manifest)
        self.figures = LiveFigures(head=self.manifest.head)
        self.exporter: Exporter | None = None

    def serve(self, stack: ExitStack, port: int) -> str:
        """Serve the figures until `stack` ends, and return the address."""
        from ttac.reports.live_figures import Exporter

        self.exporter = Exporter()
        return stack.enter_context(self.exporter.served(port))

    def follow(self, source: str, size: int, idle: float | None) -> None:
        """Do a step for each batch of the source, and show the figures after each."""
        from rich.live import Live

        how = self._preparation()
        batches = self._batches(source, how, size, idle)
        if self.as_json or not self.terminal.out.is_terminal:
            for x in batches:
                self._step(x, how)
                values = finite(self.figures.as_json())
                self.terminal.data(json.dumps(values) if self.as_json else _line(self.figures))
            return
        with Live(console=self.terminal.out, auto_refresh=False) as live:
            for x in batches:
                self._step(x, how)
                live.update(screen(self.figures), refresh=True)

    def _batches(self, source: str, how: Preparation, size: int, idle: float | None) -> Iterator[np.ndarray]:
        from ttac.samples.live import live_batches, live_images

        images = live_images(source, how.size, self.terminal.say)
        return live_batches(images, size, self.adapter.smallest_batch, idle)

    def _preparation(self) -> Preparation:
        """The rule for pixels; raises UsageError for a model of several inputs, or one that takes no images."""
        from ttac.samples.images import preparation

        first, *others = self.manifest.inputs
        if others or first.batch_axis != 0:
            raise UsageError("the model takes more than one batch of images", hint="`ttac run` takes arrays by name")
        how = preparation(self.manifest.largest(first), self.manifest.raw["preprocessing"], first.dtype)
        if not how.known:
            self.terminal.say("note: the bundle does not say how pixels are prepared (`--pixels`); they become [0, 1]")
        return how

    def _step(self, x: np.ndarray, how: Preparation) -> None:
        start = time.perf_counter()
        samples = how.prepare(x)
        outputs = self.adapter.step(samples) if self.adapts else self.adapter.predict(samples)
        milliseconds = 1000 * (time.perf_counter() - start)
        read = outputs[self.adapter.output.name] if isinstance(outputs, dict) else outputs
        classes = self.figures.add(read, len(x), milliseconds, self.adapter.stats)
        if self.exporter is not None:
            self.exporter.update(self.figures, len(x), classes)


def _line(figures: LiveFigures) -> str:
    """The figures of the last step as one line of text."""
    entropy = "" if figures.entropy is None else f", entropy {figures.entropy:.3f} nats"
    classes = ", ".join(f"{number}: {share:.0%}" for number, share in figures.most_common(3))
    shown = f", classes {classes}" if classes else ""
    return f"step {figures.steps}: {figures.milliseconds:.1f} ms{entropy}{shown}; the guard {figures.guard}"


def screen(figures: LiveFigures) -> RenderableType:
    """The figures as a table with a histogram of the classes."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    entropy = "-" if figures.entropy is None else f"{figures.entropy:.3f} nats"
    rows = {
        "step": f"{figures.steps}, {figures.samples} images",
        "time": f"{figures.milliseconds:.1f} ms a step",
        "entropy": entropy,
        "guard": figures.guard,
    }
    for name, text in rows.items():
        facts.add_row(Text(name, style="dim"), text)
    bars = Table.grid(padding=(0, 2))
    for number, share in figures.most_common(BARS):
        bars.add_row(Text(f"class {number}", style="dim"), "█" * round(WIDTH * share), f"{share:.0%}")
    return Group(facts, Text(), bars)
