"""A net with two batch norms, whose large values cross to the backward with a chosen codec."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.support.halves import joint_of
from tests.support.source_models import Weights, norm, saved, source
from tests.support.whole_models import SINGLE, Arrays, samples
from ttac.passes.differentiate.joint import Joint
from ttac.passes.operators.random_numbers import seeded
from ttac.passes.partition.partition import GraphHalves, partition
from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.decisions import Decision, KeepRatios, Plan, keep_as, nbytes
from ttac.passes.plan.plan import plan_activations

NET = """
net (float[N,6,8,8] x) => (float[N,5] y) {
  c = Conv <pads = [1,1,1,1]> (x, "conv.weight")
  b = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  r = Relu (b)
  d = Conv <pads = [1,1,1,1]> (r, "next.weight")
  e = BatchNormalization (d, "last.weight", "last.bias", "last.running_mean", "last.running_var")
  a = Add (e, r)
  s = Relu (a)
  p = GlobalAveragePool (s)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
}
"""
NET_WEIGHTS: Weights = {
    "conv.weight": (6, 6, 3, 3), "next.weight": (6, 6, 3, 3), **norm("bn", 6), **norm("last", 6), "fc.weight": (5, 6),
    "fc.bias": (5,),
}  # fmt: skip
PLANNED = 64
"""Samples that the plan of the net is for."""
LARGE_BYTES = 16384
"""A float tensor above this size crosses with the chosen codec; a smaller tensor stays dense."""


@dataclass(frozen=True)
class KeptNet:
    """The joint graph of the net, its plan, both pairs of halves, and inputs for five samples."""

    joint: Joint
    plan: Plan
    halves: GraphHalves
    exact: GraphHalves
    feeds: Arrays


def kept_net(codec: str, keep: float, folder: Path) -> KeptNet:
    """Return the net with its masks as bits and its large values in `codec` at the keep ratio `keep`.

    `exact` holds the halves that compute the same gradients from dense residuals.
    """
    joint, outputs, state = joint_of(saved(source(NET, NET_WEIGHTS), folder))
    graph = joint.model.graph

    def decide(value: ir.Value, half: Set[ir.Node]) -> Decision:
        if value.dtype == ir.DataType.BOOL:
            return keep_as(value, "bits", PLANNED)
        large = value.dtype == SINGLE and nbytes(value, PLANNED) > LARGE_BYTES
        row = keep_as(value, codec if large else "dense", PLANNED, "", keep)
        return replace(row, layers=(0,)) if large and CODECS[codec].drops else row

    numbers = {"numbers": seeded(0)} if CODECS[codec].draws else {}
    ratios = KeepRatios("shares", np.array([keep], np.float32), False, "".join(numbers))
    plan = plan_activations(graph, joint.backward, list(graph.inputs), PLANNED, decide, ratios)
    halves, exact = (partition(joint.model, outputs, joint.gradients, p) for p in (plan, plan.exactly()))
    assert halves.backward is not None and exact.backward is not None
    return KeptNet(joint, plan, halves, exact, {"x": samples((6, 8, 8), 5), **state, **numbers})
