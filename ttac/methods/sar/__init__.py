"""Sharpness-aware, reliable entropy minimisation with recovery.

Niu et al., "Towards stable test-time adaptation in dynamic wild world", ICLR 2023.  Where the official code differs,
ttac follows the paper: a recovery also clears momentum and average, and a batch without reliable samples changes
nothing (in the official code, momentum goes on moving the weights).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttac.shared_options import (
    COME,
    ESTIMATE,
    EXCLUDE_LAST_STAGE,
    GUARD,
    PRIOR_CORRECTION,
    PUBLISHED_LR,
    SOURCE_WEIGHT,
    WINDOW,
    come_variant,
    published_lr,
)
from ttac.spec import BATCH_STATISTICS, Method, Option

GRAPHS = {
    "reliable": "ttac.passes.step_graphs.sample_weights:reliable",
    "ascend": "ttac.methods.sar.sharpness:ascend",
    "confirm": "ttac.methods.sar.sharpness:confirm",
    "descend": "ttac.methods.sar.sharpness:descend",
    "undo_ascent": "ttac.methods.sar.sharpness:undo_ascent",
}


def program(*before_backward: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The words of a step; `before_backward` are further words before each of the two backwards."""
    recovery = {"when": "collapsed", "then": ({"reset": ("parameter", "optimizer", "counter")},)}
    descent = (*before_backward, {"run": "backward"}, {"run": "descend"}, recovery)
    ascent = (
        *before_backward,
        {"run": "backward"},
        {"run": "ascend"},
        {"run": "forward", "again": True},
        {"run": "confirm"},
        {"when": "confirmed", "then": descent, "otherwise": ({"run": "undo_ascent"},)},
    )
    return ({"run": "forward"}, {"run": "reliable"}, {"when": "selected", "then": ascent}, {"return": "logits"})


METHOD = Method(
    name="sar",
    title="sharpness-aware entropy minimisation on reliable samples, with recovery",
    paper="arXiv:2302.12400",
    needs="norms of any kind, best without batch statistics (GroupNorm, LayerNorm); single samples suffice with these",
    statistics=lambda settings: BATCH_STATISTICS,
    trains=True,
    loss="weighted_entropy",
    options=(
        PUBLISHED_LR,
        Option("momentum", 0.9, "momentum of the descent", low=0.0, high=1.0),
        Option("weight_decay", 0.0, "pulls the trained tensors to zero; added to their gradient", low=0.0),
        Option("margin", 0.4, "a sample is reliable if its entropy is below this times ln(classes)", low=0.0),
        Option("rho", 0.05, "length of the step up before the step down", low=0.0),
        Option(
            "reset_threshold",
            0.2,
            "recover if the average entropy of reliable samples falls below this times ln(classes)/ln(1000)",
            low=0.0,
        ),
        SOURCE_WEIGHT,
        PRIOR_CORRECTION,
        ESTIMATE,
        *GUARD,
        COME,
        EXCLUDE_LAST_STAGE,
        WINDOW,
    ),
    check="ttac.passes.step_graphs.class_options:check",
    settle=published_lr,
    choose_trained="ttac.passes.step_graphs.last_stage:before_last_stage",
    graphs=GRAPHS,
    program=program(),
    variants=come_variant(GRAPHS, program),
    oracle="benchmarks/pytorch_peers.py:Sar",
)
