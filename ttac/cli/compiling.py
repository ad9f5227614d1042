"""`ttac compile`: a model, a method and a target in, a bundle out."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttac import methods, settings, targets
from ttac.cli.bundles import contents, summary
from ttac.cli.options import CONTEXT, PATH, as_json, count, model, one_of, pixels, size, terminal, verbose
from ttac.cli.reports import render
from ttac.cli.terminal import Terminal

if TYPE_CHECKING:
    from ttac.runtime.bundle import Bundle


@click.command("compile", context_settings=CONTEXT)
@click.argument("path", metavar="MODEL.onnx", type=PATH)
@click.option("--method", metavar="M", default="tent", show_default=True, help="See `ttac methods`.")
@click.option(
    "--target", metavar="T", default="cpu", show_default=True, help="See `ttac targets`; or your `.toml` file."
)
@click.option("-o", "--output", metavar="DIR", type=PATH, help="The bundle's folder.  [default: MODEL-M-T.ttac]")
@click.option("--batch", metavar="N", callback=count(), help="Samples per step to plan for.  [default: the target's]")
@click.option(
    "--calibration", metavar="PATH", type=PATH, help="Unlabelled source samples: .npz, .npy or images' folder."
)
@model
@pixels
@click.option(
    "--train",
    metavar="norms|all|SELECTOR",
    default="norms",
    show_default=True,
    help="Which norms adapt: names, `first:4`, `last:30%`, `every:3`, `auto:6@20%`.",
)
@click.option("--quantize", metavar="int8", callback=one_of("int8"), help="Run the frozen layers in 8 bits.")
@click.option("--memory-budget", metavar="SIZE", callback=size, help="Refuse a bundle that needs more, as `64MiB`.")
@click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="A hyperparameter; see `ttac methods M`."
)
@click.option(
    "--emit", metavar="ort-training", callback=one_of("ort-training"), help="Also write ONNX Runtime's files."
)
@click.option("--dump", metavar="DIR", type=PATH, help="Write the graph after each room here.")
@click.option("--dry-run", is_flag=True, help="Plan and report, write nothing.")
@as_json
@verbose
@terminal
def compile_command(
    terminal: Terminal, /, path: Path, as_json: bool, assignments: tuple[str, ...], **choices: Any
) -> None:
    """Compile MODEL.onnx into a bundle and print the bundle's path."""
    given = settings.split_assignments(assignments)
    settings.resolve(methods.find(choices["method"]), given, choices["quantize"])
    targets.find(choices["target"])
    bundle = _compile(terminal, path, settings=given, **choices)
    if as_json:
        terminal.json(contents(bundle))
    elif choices["dry_run"]:
        render(terminal, {key: value for key, value in summary(bundle).items() if key != "rooms"})
    else:
        terminal.data(str(bundle.path))


def _compile(terminal: Terminal, path: Path, **choices: Any) -> Bundle:
    """Call the driver, imported only when the arguments are right; what libraries print there is no data."""
    from ttac.pipeline import compile_model

    choices["input"] = choices.pop("input_name")
    with redirect_stdout(sys.stderr):
        return compile_model(path, say=terminal.say, **choices)
