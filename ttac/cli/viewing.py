"""`ttac view`: a model, or one graph of a bundle, in Netron."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import click

from ttac.cli.common_options import CONTEXT, PATH, count, terminal, verbose
from ttac.cli.terminal import Terminal
from ttac.errors import RuntimeMissingError, UsageError
from ttac.runtime.bundle import is_bundle
from ttac.staging import as_folder
from ttac.suggest import did_you_mean

DEFAULT = "forward"
"""The graph that opens without an argument GRAPH."""


@click.command("view", context_settings=CONTEXT, short_help="Open a model, or one graph of a bundle, in Netron.")
@click.argument("path", metavar="MODEL_OR_BUNDLE", type=PATH)
@click.argument("graph", required=False)
@click.option("--nodes", is_flag=True, help="Show every node of a bundle's graph, not one box for each layer.")
@click.option("--no-browser", is_flag=True, help="Serve the graph; open the printed address yourself.")
@click.option("--port", metavar="N", callback=count(), help="Port on this computer.  [default: a free one from 8080]")
@verbose
@terminal
def view(terminal: Terminal, path: Path, graph: str | None, nodes: bool, no_browser: bool, port: int | None) -> None:
    """Open a model, or GRAPH of a bundle (default `forward`), in Netron; stop with Ctrl-C.

    The graph of a bundle has one box for each layer, or for each block of a large network; a click opens a box.
    In a folder from `ttac compile --dump`, GRAPH is a room: `adapt`, `autodiff`, `lower/forward`.
    """
    with as_folder(path) as place:
        file = graph_file(place, graph)
        try:
            import netron
        except ImportError as error:
            raise RuntimeMissingError("`ttac view` needs Netron", hint="`pip install 'ttac[view]'`") from error
        with shown_file(file, folds=place.is_dir() and not nodes) as shown:
            with redirect_stdout(sys.stderr):
                host, port = netron.start(str(shown), address=port, browse=not no_browser)
            terminal.data(f"http://{host}:{port}")
            terminal.say("stop with Ctrl-C")
            netron.wait()


@contextmanager
def shown_file(file: Path, folds: bool) -> Iterator[Path]:
    """The file, or if it `folds`, a temporary copy of the same name with one box for each layer."""
    if not folds:
        yield file
        return
    import onnx

    from ttac.passes.load.checked_file import parse
    from ttac.reports.folded_graph import folded

    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        copy = Path(folder) / file.name
        onnx.save(folded(parse(file)), copy)
        yield copy


def graph_file(path: Path, graph: str | None) -> Path:
    """Return the `.onnx` file to open; raises UsageError when there is no file of that name."""
    if not path.exists():
        raise UsageError("there is no such model or bundle", where=f"`{path}`", hint="give an `.onnx` file or a bundle")
    if not path.is_dir():
        if graph is not None:
            hint = "give an `.onnx` file alone, or a bundle's folder and a graph"
            raise UsageError("only a bundle holds several graphs", where=f"`{path}`", hint=hint)
        return path
    known = graphs_of(path)
    if not known:
        hint = "give an `.onnx` file, a bundle, or the folder of `--dump`"
        raise UsageError("the folder holds no graph", where=f"`{path}`", hint=hint)
    if graph is None:
        return known.get(DEFAULT) or list(known.values())[-1]
    name = graph.removesuffix(".onnx")
    if name not in known:
        kind = "bundle" if is_bundle(path) else "folder"
        hint = did_you_mean(name, known)
        raise UsageError(f"the {kind} has no graph `{name}`", where=f"`{path}`", hint=hint)
    return known[name]


def graphs_of(folder: Path) -> dict[str, Path]:
    """Return the graphs of a bundle or of a `--dump` by name: `forward`, or for a room `autodiff`, `lower/forward`."""
    known = {file.stem: file for file in sorted(folder.glob("*.onnx"))}
    for room in sorted(folder.glob("[0-9][0-9]-*")):
        files = sorted(room.glob("*.onnx"))
        name = room.name.partition("-")[2]
        known |= {name if len(files) == 1 else f"{name}/{file.stem}": file for file in files}
    return known
