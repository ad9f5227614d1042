"""Run a graph in the engine of this machine during a compile, to verify the graph or to read statistics."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.shapes import is_batch
from ttac.runtime.engine import open_session


def run(
    model: ir.Model,
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[str] | None = None,
    *,
    optimised: bool = True,
) -> dict[str, np.ndarray]:
    """Return the outputs of `model` by name; `feeds` may contain more than the inputs."""
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {"graph": model})
        return Executable(Path(folder) / "graph.onnx", optimised=optimised)(feeds, outputs)


class Executable:
    """A graph file loaded once; a call takes feeds, of which it uses the graph's inputs, and returns outputs by name.

    With `optimised=False` the engine executes the file unchanged. Raises RuntimeMissingError if the engine refuses
    the file.
    """

    def __init__(self, path: Path, *, optimised: bool = True) -> None:
        self._session = open_session(path, optimised=optimised)
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return the named outputs, by default all.

        Raises UnsupportedError where the engine refuses the inputs or fails in a node.
        """
        names = list(outputs or self._outputs)
        try:
            arrays = self._session.run(names, {name: feeds[name] for name in self._inputs})
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise UnsupportedError(
                "onnxruntime loads a graph of this model but cannot execute the graph",
                where=str(error).strip().splitlines()[0][:400],
                hint="check the file with `onnxruntime.InferenceSession(path).run(...)`, and export the model again",
            ) from error
        return dict(zip(names, arrays, strict=True))


def batch_axes(model: ir.Model) -> dict[str, int]:
    """Return the floating outputs of a normalised model that grow with the batch, by name, with the axis that grows."""
    axes = {}
    for value in model.graph.outputs:
        grown = [axis for axis, size in enumerate(value.shape or ()) if is_batch(str(size))]
        if len(grown) == 1 and (value.dtype is None or value.dtype.is_floating_point()):
            axes[str(value.name)] = grown[0]
    return axes


def random_input(x: ir.Value, shape: Sequence[int]) -> np.ndarray:
    """Return random values for the graph input `x`: standard normal floats, or numbers that its readers accept.

    Integers are from 0 to 255 for bytes, below the number of rows that a Gather reads, else 0 or 1.
    """
    dtype, random = (x.dtype or ir.DataType.FLOAT).numpy(), np.random.default_rng(0)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    high = 256 if dtype == np.uint8 else 2
    rows = [_rows_read(node, x) for node in _readers(x)]
    return random.integers(0, min((count for count in rows if count), default=high), shape).astype(dtype)


def _readers(x: ir.Value) -> list[ir.Node]:
    """The nodes that read `x`, also behind Casts, once for each use."""
    casts = [use.node.outputs[0] for use in x.uses() if use.node.op_type == "Cast"]
    return [use.node for value in (x, *casts) for use in value.uses()]


def _rows_read(node: ir.Node, x: ir.Value) -> int:
    """The number of rows of the table from which `node` reads by index, 0 for another operator."""
    table = node.inputs[0]
    if node.op_type != "Gather" or table is x or table is None or table.shape is None:
        return 0
    size = table.shape[node.attributes.get_int("axis", 0)]
    return size if isinstance(size, int) else 0


def rows(run: Executable, x: str, samples: np.ndarray, batch: int, axes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the outputs in `axes` for each of the samples [n, ...], computed `batch` at a time, by name.

    A model whose file fixes the batch accepts no other batch. Copies of the first sample fill the last batch.

    Args:
        x: name of the input.
        axes: name of the output -> the axis with the samples.
    """
    short = -len(samples) % batch
    padded = np.concatenate([samples, samples[:1].repeat(short, 0)])
    parts = [run({x: padded[i : i + batch]}, list(axes)) for i in range(0, len(padded), batch)]
    whole = {name: np.concatenate([part[name] for part in parts], axis) for name, axis in axes.items()}
    return {
        name: np.take(array, range(array.shape[axes[name]] * len(samples) // len(padded)), axes[name])
        for name, array in whole.items()
    }
