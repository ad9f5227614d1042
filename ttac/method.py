"""What a method asks of the model at hand: defaults that depend on it, its own graphs, and the anchor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt import Adaptation
from ttac.passes.differentiate import Joint
from ttac.passes.fisher import fisher_information
from ttac.passes.method_graphs import Context, MethodGraph
from ttac.passes.norms import NormSite
from ttac.passes.steps import STEPS
from ttac.request import Request
from ttac.sites import Samples
from ttac.spec import Facts


def facts_of(asked: Request, model: ir.Model, sites: Sequence[NormSite]) -> Facts:
    """What the method's defaults may depend on."""
    return Facts(asked.batch, classes_of(model.graph.outputs[0]), frozenset(site.kind for site in sites))


def classes_of(logits: ir.Value) -> int:
    """The size of the second axis of [N, C, ...]; 1 where there is none."""
    assert logits.shape is not None
    return int(logits.shape[1]) if len(logits.shape) > 1 else 1  # type: ignore[arg-type]


def anchor_of(asked: Request, model: ir.Model, adaptation: Adaptation, samples: Samples) -> dict[str, np.ndarray]:
    """Fisher information by parameter for a method that holds on to the source; empty without calibration data."""
    if not asked.settings.get("fisher") or samples.array is None:
        return {}
    return fisher_information(model, adaptation, samples.array, asked.target)


def method_graphs(asked: Request, joint: Joint, anchor: Mapping[str, np.ndarray]) -> dict[str, MethodGraph]:
    """The graphs of the method besides forward and backward, by name."""
    assert joint.loss is not None
    scores = joint.loss.scores or joint.logits
    context = Context(
        joint.parameters,
        [str(value.name) for value in joint.gradients],
        str(scores.name),
        classes_of(scores),
        asked.settings,
        joint.model.opset_imports[""],
        anchor,
    )
    return {name: STEPS[name](context) for name in asked.method.graphs}
