"""`ttac recommend`: the method to take for a model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttac.cli.common_options import (
    COMPILING,
    CONTEXT,
    PATH,
    as_json,
    compile_options,
    count,
    several,
    terminal,
    verbose,
)
from ttac.cli.evaluating import watch_of
from ttac.cli.terminal import Terminal

if TYPE_CHECKING:
    from ttac.evaluation.recommendation import Candidate, Recommendation

READING = tuple(name for name in COMPILING if name != "calibration")


@click.command("recommend", context_settings=CONTEXT)
@click.argument("model", type=PATH)
@click.option(
    "--calibration",
    "data",
    metavar="PATH",
    type=PATH,
    required=True,
    help="A few hundred source samples: .npz, .npy or a folder of images; labels help.",
)
@several("--methods", metavar="M,...", help="Methods to try.  [default: all]")
@several("--shifts", metavar="S,...", help="Corruptions of images, or shifts of other samples.  [default: five]")
@click.option("--severity", metavar="1-5", type=int, default=5, show_default=True, help="Severity of the shifts.")
@click.option(
    "--order", metavar="O", default="shuffled", show_default=True, help="Order of the samples, as in `ttac eval`."
)
@click.option("--batch", metavar="N", callback=count(), help="Samples a step.  [default: the target's number]")
@click.option(
    "--samples", metavar="N", default="512", show_default=True, callback=count(), help="Use N of the samples."
)
@click.option("--slowest", metavar="X", type=float, help="Leave out methods whose step takes over X steps of `source`.")
@compile_options(*READING, "memory_budget")
@click.option(
    "-o", "--output", metavar="DIR", type=PATH, help="Keep finished results in this folder, to continue later."
)
@click.option(
    "--jobs", metavar="N", default="1", show_default=True, callback=count(), help="Number of parallel processes."
)
@as_json
@verbose
@terminal
def recommend(terminal: Terminal, /, model: Path, data: Path, as_json: bool, **choices: Any) -> None:
    """Choose a method for MODEL: try all methods on shifts of calibration samples.

    One half of the samples calibrates, the other half is streamed, clean and under five synthetic shifts. Without
    labels, a prediction counts as wrong if it differs from the unchanged model's prediction of the clean sample. The
    lowest mean error wins; among methods within half a point of the lowest error, the cheapest wins.
    """
    from ttac.evaluation.recommendation import recommend as find

    options = {name: choices.pop(name) for name in (*READING, "memory_budget")}
    with terminal.progress() as progress:
        found = find(model, data, options=options, watch=watch_of(terminal, progress), **choices)
    if as_json:
        terminal.json(found.as_json())
        return
    _show(terminal, found)
    if found.method != "source":
        command = ["ttac", "compile", str(model), "--method", found.method, "--calibration", str(data)]
        terminal.say(f"next: {shlex.join(command)}")


def _show(terminal: Terminal, found: Recommendation) -> None:
    """Print the table of methods, the reasons of refusals, and the choice."""
    if not found.labelled:
        terminal.say("note: without labels, errors are differences from the unchanged model's clean predictions")
    for method, reason in found.refused.items():
        terminal.say(f"not run: `{method}`: {reason}")
    columns = ["method", "mean error, %>", "clean, %>", "worst shift, %>", "step / source>", "peak memory>"]
    terminal.table(columns, map(_row, found.candidates))
    terminal.show()
    terminal.show(f"take `{found.method}`: {found.because}")


def _row(candidate: Candidate) -> list[str]:
    from ttac.sizes import format_size

    errors = (f"{100 * error:.1f}" for error in (candidate.error, candidate.clean, candidate.worst))
    peak = "-" if candidate.peak_bytes is None else format_size(candidate.peak_bytes)
    return [candidate.method, *errors, f"{candidate.cost:.1f}x" + (", too slow" if candidate.slow else ""), peak]


COMMAND = recommend
"""The command that `ttac.cli.LazyCommand` calls."""
