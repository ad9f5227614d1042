"""The content of a bundle: its graphs and their tables, before they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.compile_state import CompileState
from ttac.passes.differentiate.joint import Joint
from ttac.passes.graph.state import StateTensor
from ttac.passes.normalise.normal_form import batch_first
from ttac.passes.plan.decisions import Plan


@dataclass(frozen=True)
class OpenSize:
    """A size that stays open.

    Attributes:
        name: its symbol in the manifest.
        largest: the size that the bundle is planned for; multiple: every size is a multiple of it.
        smallest: the smallest size at which the bundle works.
    """

    name: str
    largest: int
    multiple: int = 1
    smallest: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class BundleContent:
    """The content of a bundle.

    Attributes:
        state: the state of the compile that the graphs were built from.
        joint: the joint graph, to compare with.
        plan: the plan by which the joint graph was cut.
        graphs: file stem -> model in standard operators; `infer` is the source model.
        exact: forward and backward with dense residuals, to compare with; empty if the bundle's residuals are dense.
        tensors: every state tensor with its initial value.
        moves: graph -> graph output -> state tensor.
        stats: graph -> graph output -> name in `adapter.stats`.
        fed_weights: weights that are graph inputs, by name.
        forms: further spellings of the graphs, as entries of the manifest.
        sizes: sizes of the inputs that stay open; fixed: then the same bundle for the largest sizes alone.
    """

    state: CompileState
    joint: Joint
    plan: Plan
    graphs: Mapping[str, ir.Model]
    exact: Mapping[str, ir.Model]
    tensors: Sequence[StateTensor]
    moves: Mapping[str, Mapping[str, str]]
    stats: Mapping[str, Mapping[str, str]]
    fed_weights: Mapping[str, np.ndarray]
    forms: Sequence[Mapping[str, Any]] = ()
    sizes: Sequence[OpenSize] = ()
    fixed: BundleContent | None = None

    @property
    def inputs(self) -> list[ir.Value]:
        """The model's inputs at their largest sizes, of which methods distort the first."""
        if self.fixed is not None:
            return self.fixed.inputs
        named = {str(value.name): value for value in self.graphs["infer"].graph.inputs}
        return [named[name] for name in self.state.inputs]

    @property
    def logits(self) -> str:
        """Name of the value that the loss and the head read."""
        return str(self.joint.logits.name)

    @property
    def output(self) -> str:
        """Name of the model's output that the loss and the head read: `logits`, or the output that it is a copy of."""
        return self.logits.removesuffix(batch_first(""))

    @property
    def outputs(self) -> list[str]:
        """Names of the model's outputs, in the order of its file."""
        return [str(value.name) for value in self.graphs["infer"].graph.outputs]

    def stages(self, graph: str) -> list[str]:
        """The files of one graph of the method's program, in order: `backward-1`, `backward-2`, ..."""
        return [name for name in self.graphs if name == graph or name.startswith(f"{graph}-")]
