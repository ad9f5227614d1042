"""Run a graph in the engine of this machine during a compile, to verify the graph or to read statistics."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.sample_set import SampleSet
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

    With `optimised=False` the engine executes the file unchanged. `library` is a shared library of further operators.
    Raises RuntimeMissingError if the engine refuses the file.
    """

    def __init__(self, path: Path, *, optimised: bool = True, library: Path | None = None) -> None:
        self._session = open_session(path, optimised=optimised, library=library)
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


def rows(run: Executable, samples: SampleSet, batch: int, axes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the outputs in `axes` for each of the samples, computed `batch` at a time, by name.

    A model whose file fixes the batch accepts no other batch. Copies of the first sample fill the last batch.

    Args:
        axes: name of the output -> the axis with the samples.
    """
    count = len(samples)
    padded = samples.filled(-count % batch)
    parts = [run(feeds, list(axes)) for feeds in padded.batches(batch)]
    whole = {name: np.concatenate([part[name] for part in parts], axis) for name, axis in axes.items()}
    return {
        name: np.take(array, range(array.shape[axes[name]] * count // len(padded)), axes[name])
        for name, array in whole.items()
    }
