"""How much the source needs each parameter where it is: the diagonal of its Fisher information on calibration data.

EATA (arXiv:2204.02610, eq. 9) with the most likely class as label; as its code does, the square is that of the gradient
of a batch's mean loss, averaged over batches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt.adapt_norms import Adaptation
from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.joint import differentiate_loss
from ttac.passes.graph.execute import Executable
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.lower.lower import lower
from ttac.spec import Target

BATCH = 64
"""Samples whose loss is averaged before the square, as in the paper."""


def fisher_information(
    model: ir.Model, adaptation: Adaptation, samples: np.ndarray, target: Target, head: Head, batch: int = BATCH
) -> dict[str, np.ndarray]:
    """F by parameter name, in its shape; `model` is adapted and stays as it is.

    Args:
        samples: float32 [n, ...], as the model takes them.
        head: how the model's output is read.
        batch: samples per gradient; a rest of the samples counts as a batch of its own.
    """
    copy = model.clone()
    values = {str(value.name): value for value in copy.graph.inputs}
    parameters = tuple(replace(p, value=values[p.name]) for p in adaptation.parameters)
    joint = differentiate_loss(copy, copy.graph.outputs[0], "pseudo_label", parameters, head)
    copy.graph.outputs[:] = list(joint.gradients)
    names = {p.name: str(gradient.name) for p, gradient in zip(joint.parameters, joint.gradients, strict=True)}
    state = {tensor.name: tensor.initial for tensor in adaptation.state}
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {"fisher": lower(copy, target)})
        run = Executable(Path(folder) / "fisher.onnx")
        batches = np.array_split(samples, range(batch, len(samples), batch))
        return _averaged(run, str(model.graph.inputs[0].name), state, names, batches)


def _averaged(
    run: Executable, x: str, state: Mapping[str, np.ndarray], names: Mapping[str, str], batches: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    totals: dict[str, np.ndarray] = {}
    for part in batches:
        found = run({**state, x: part})
        for parameter, gradient in names.items():
            totals[parameter] = totals.get(parameter, 0.0) + found[gradient].astype(np.float64) ** 2
    return {parameter: (total / len(batches)).astype(np.float32) for parameter, total in totals.items()}
