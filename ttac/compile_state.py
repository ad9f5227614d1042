"""The state of a compile between two rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.learned_outputs import FurtherOutput
from ttac.options import CompileOptions
from ttac.passes.adapt.adapt_norms import Adaptation
from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.joint import Joint
from ttac.passes.norms.norm_sites import NormSite
from ttac.passes.quantize.modules import Int8Modules
from ttac.passes.step_graphs.check_set import CheckSet
from ttac.source_samples import Samples


@dataclass(frozen=True, eq=False, kw_only=True)
class CompileState:
    """The results of all rooms so far; a room takes a state and returns a new one.

    A room never edits a model of the state that it takes: it builds a new model, or clones one before it edits.

    Attributes:
        options: the options of the user; rooms add the defaults that depend on the model.
        source: the model as loaded.
        model: the result of the last room that rewrote the model; its first output is the one that a loss reads.
        outputs: names of the model's outputs, in the order of the file.
        inputs: names of the model's inputs, of which methods distort the first.
        single: whether the file works for one sample at a time only.
        samples: calibration samples.
        head: the reading of the output, None where it is unclear and the method needs none.
        further: outputs that the loss reads in addition to the first.
        sites: the norms to adapt, in graph order; their nodes belong to `model`, and to `infer` from the adapt room on.
        int8: the layers that run in 8 bits; no module without `--quantize`.
        infer: the source model with initializers of its own for every site; None before the adapt room.
        adaptation: the rewritten norms and their state; its values belong to `model`.
        constants: arrays that the method computes once, while compiling.
        usual_information: information of a batch of calibration data (`ttac.passes.step_graphs.guard`); 0 if unknown.
        check: calibration samples that the guard predicts from time to time; None if there are none to judge.
        joint: forward, loss and gradients in one graph; None before the autodiff room.
    """

    options: CompileOptions
    source: ir.Model
    model: ir.Model
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    single: bool = False
    samples: Samples = field(default_factory=Samples)
    head: Head | None = None
    further: tuple[FurtherOutput, ...] = ()
    sites: tuple[NormSite, ...] = ()
    int8: Int8Modules = field(default_factory=lambda: Int8Modules([]))
    infer: ir.Model | None = None
    adaptation: Adaptation = field(default_factory=Adaptation)
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    usual_information: float = 0.0
    check: CheckSet | None = None
    joint: Joint | None = None

    def with_settings(self, settings: Mapping[str, Any]) -> CompileState:
        """The same state with other values of the hyperparameters."""
        return replace(self, options=replace(self.options, settings=settings))

    def keeping(self, factor: float) -> CompileState:
        """The same state with `factor` times the keep ratio, for a method that has one."""
        keep, settings = self.options.method.keep, self.options.settings
        assert keep is not None
        return self.with_settings({**settings, keep.option: round(float(settings[keep.option]) * factor, 4)})
