"""The adapted model with its compiled state, run on calibration samples while compiling."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ttac.compile_state import CompileState
from ttac.passes.differentiate.heads import Head, scores_of
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import Executable
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.lower.lower import lower

Judge = Callable[[Builder, ir.Value, Head], Sequence[ir.Value]]
"""Builder, scores of the output and their reading -> the values to compute."""


def computed(
    state: CompileState, judge: Judge, batches: Iterable[Mapping[str, np.ndarray]], room: str
) -> Iterator[list[np.ndarray]]:
    """The values that `judge` makes of the predictions, for each of the `batches`; the model needs a head.

    Args:
        room: name of the graph and of the nodes that `judge` adds.
    """
    head, copy = state.head, state.model.clone()
    assert head is not None
    op = Builder(copy.graph, room, copy.opset_imports[""])
    with op.at(room):
        copy.graph.outputs[:] = judge(op, scores_of(op, copy.graph.outputs[0], head), head)
    names = [str(value.name) for value in copy.graph.outputs]
    initial = {tensor.name: tensor.initial for tensor in state.adaptation.state}
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {room: lower(copy, state.options.target)})
        run = Executable(Path(folder) / f"{room}.onnx")
        for batch in batches:
            values = run({**initial, **batch})
            yield [values[name] for name in names]
