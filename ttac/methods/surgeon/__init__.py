"""Entropy minimisation that keeps a part of each layer's input, by the layer's importance for this batch.

Ma et al., "SURGEON: memory-adaptive fully test-time adaptation via dynamic activation sparsity", CVPR 2025.  The
paper's cache serves the weight gradients alone, and the official code also keeps every tensor whole.  ttac frees the
dropped values.  So the gradient of a batch norm's input, which reads this input too, is computed from the kept values,
and a dropped block of activations is replaced by its mean.  The probe runs the same two graphs on the first samples of
the batch with all values kept.  Where the official code errs, ttac follows the paper: gradients of the probe alone
decide, layers are paired by name, and biases learn like weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttac.shared_options import STATISTICS, chosen_statistics, optimizer_options
from ttac.spec import Facts, KeepPolicy, Method, Option, Settings

SELECTIONS = {"blocks": "blocks", "levels": "levels", "threshold": "sparse", "topk": "topk"}
"""Codec by the word of the option `select`."""


def codec(settings: Settings) -> str:
    """The codec that the option `select` names."""
    return SELECTIONS[settings["select"]]


SPARSITY = (
    Option(
        "select",
        "blocks",
        "kept part of an input: blocks spread evenly, and the mean of the others; the same, but read as two levels a "
        "block, for long streams (slower); values above a sampled threshold; or exactly the largest (both slow)",
        choices=tuple(SELECTIONS),
    ),
)

CONSISTENT: Mapping[str, Any] = {
    "loss": "ttac.passes.step_graphs.two_views:consistent_entropy",
    "check": "ttac.methods.surgeon.consistency:check",
    "graphs": {
        "probe": "ttac.methods.surgeon.consistency:probe",
        "importance": "ttac.methods.surgeon.importance:importance",
        "augment": "ttac.passes.step_graphs.two_views:augment",
        "plain_view": "ttac.methods.surgeon.consistency:plain_view",
        "keep_gradients": "ttac.methods.surgeon.consistency:keep_gradients",
        "weigh_certain": "ttac.methods.surgeon.weigh_certain:weigh_certain",
        "add_gradients": "ttac.methods.surgeon.consistency:add_gradients",
        "update": "ttac.passes.step_graphs.two_views:update",
    },
    "program": (
        {"reset": ("sparsity",)},
        {"run": "forward", "again": True, "rows": "probe_samples"},
        {"run": "probe"},
        {"run": "backward", "rows": "probe_samples"},
        {"run": "importance"},
        {"run": "augment"},
        {"run": "forward", "again": True},
        {"run": "plain_view"},
        {"run": "forward", "again": True, "on": "augmented"},
        {"run": "backward", "on": "augmented"},
        {"run": "keep_gradients"},
        {"run": "forward"},
        {"run": "weigh_certain"},
        {"run": "backward"},
        {"run": "add_gradients"},
        {"run": "update"},
        {"return": "logits"},
    ),
}
"""With `cr`: the distorted view learns from the plain view's predictions, then the plain view from both predictions."""


def settle(settings: Settings, facts: Facts) -> Settings:
    """The weight of the consistency in LAW and in the official code, if none is set."""
    return {**settings, "cr_weight": settings["cr_weight"] or 0.01 * facts.classes} if settings["cr"] else settings


METHOD = Method(
    name="surgeon",
    title="entropy minimisation with a dynamically sparse cache of activations",
    paper="arXiv:2503.20354",
    needs="norms of any kind, or calibration data where the export folded them; with BatchNorm more than a few samples",
    statistics=chosen_statistics,
    trains=True,
    loss="weighted_entropy",
    options=(
        *optimizer_options("adam", 1e-3),
        Option(
            "keep",
            1.0,
            "keep ratio of the most important layer: the fraction of its input that is kept",
            low=0.0,
            high=1.0,
        ),
        *SPARSITY,
        Option("probe_samples", 1, "number of samples at the head of the batch that measure the importance", low=1),
        Option("css", False, "learn from certain samples only, weighted (the paper's CSS)"),
        Option(
            "margin", 0.4, "with `css`: a sample is certain if its entropy is below this times ln(classes)", low=0.0
        ),
        Option(
            "cr", False, "predict alike for images and their distortions, all samples (the paper's CR; one draw a step)"
        ),
        Option("cr_weight", 0.0, "with `cr`: weight of the consistency; 0 takes 0.01 times the classes", low=0.0),
        Option("black", "0", "with `cr`: a black pixel as the model reads it; commas between values of three channels"),
        Option("white", "1", "with `cr`: a white pixel, likewise; normalised inputs have (0 - m)/s and (1 - m)/s"),
        Option("seed", 0, "with `cr`: start of the random numbers", low=0),
        *STATISTICS,
    ),
    settle=settle,
    pixels=lambda black, white: {"black": black, "white": white},
    graphs={
        "uniform": "ttac.passes.step_graphs.sample_weights:uniform",
        "importance": "ttac.methods.surgeon.importance:importance",
        "weigh_certain": "ttac.methods.surgeon.weigh_certain:weigh_certain",
        "update": "ttac.passes.step_graphs.optimizers:update",
    },
    program=(
        {"reset": ("sparsity",)},
        {"run": "forward", "again": True, "rows": "probe_samples"},
        {"run": "uniform"},
        {"run": "backward", "rows": "probe_samples"},
        {"run": "importance"},
        {"run": "forward"},
        {"run": "weigh_certain"},
        {"when": "selected", "then": ({"run": "backward"}, {"run": "update"})},
        {"return": "logits"},
    ),
    keep=KeepPolicy("keep", codec, measured=True),
    variants={"cr": CONSISTENT},
    oracle="tests/golden/make/surgeon_nets.py",
)
