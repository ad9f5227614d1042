"""Run a graph on this machine's engine while compiling: to verify it, or to read statistics off it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.graph_files import write_graphs
from ttac.runtime.engine import plain_session


def run(
    model: ir.Model,
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[str] | None = None,
    *,
    optimised: bool = True,
) -> dict[str, np.ndarray]:
    """The outputs of `model` by name; `feeds` may hold more than its inputs."""
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {"graph": model})
        return Executable(Path(folder) / "graph.onnx", optimised=optimised)(feeds, outputs)


class Executable:
    """A graph file loaded once: call it with feeds (it takes the inputs it has), get its outputs by name.

    Not `optimised`, it is executed as it is written.  Raises RuntimeMissingError if the engine refuses the file.
    """

    def __init__(self, path: Path, *, optimised: bool = True) -> None:
        self._session = plain_session(path, optimised=optimised)
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The named outputs, all by default."""
        names = list(outputs or self._outputs)
        found = self._session.run(names, {name: feeds[name] for name in self._inputs})
        return dict(zip(names, found, strict=True))


def rows(run: Executable, model: ir.Model, samples: np.ndarray, batch: int) -> np.ndarray:
    """What `run`, loaded from `model`, gives for each of the samples [n, ...], computed `batch` at a time.

    A model whose file fixes the batch takes no other: the last one is filled up with copies of the first sample.
    """
    (x,), (y,) = model.graph.inputs, model.graph.outputs
    short = -len(samples) % batch
    padded = np.concatenate([samples, samples[:1].repeat(short, 0)])
    parts = [run({str(x.name): padded[i : i + batch]})[str(y.name)] for i in range(0, len(padded), batch)]
    return np.concatenate(parts)[: len(samples)]
