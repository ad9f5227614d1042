"""Entropy and agreement with distorted views, where each tensor learns as fast as its accumulated gradients are large.

Park et al., "Layer-wise auto-weighting for non-stationary test-time adaptation", WACV 2024, with the official code.
The code adds the gradients of the last update to those that measure a tensor; ttac measures with the gradients of this
batch alone, as the paper describes.
"""

from __future__ import annotations

from ttac.shared_options import (
    DISTORTIONS,
    ESTIMATE,
    GUARD,
    PRIOR_CORRECTION,
    SOURCE_WEIGHT,
    STATISTICS,
    chosen_statistics,
)
from ttac.spec import Facts, Method, Option, Settings


def settle(settings: Settings, facts: Facts) -> Settings:
    """The published rate and exponent for data sets of about this many classes, and 0.01 * classes, if none is set."""
    lr, exponent = (1e-3, 1.0) if facts.classes <= 10 else (5e-5, 0.6) if facts.classes <= 100 else (2e-4, 1.0)
    published = {"lr": lr, "exponent": exponent, "agreement": 0.01 * facts.classes}
    return {**settings, **{name: settings[name] or value for name, value in published.items()}}


METHOD = Method(
    name="law",
    title="entropy and agreement with distorted views; each tensor has its learning rate",
    paper="arXiv:2311.05858",
    needs="images with one class each, and norms of any kind; with BatchNorm more than a few samples a batch",
    statistics=chosen_statistics,
    trains=True,
    loss="ttac.passes.step_graphs.two_views:consistent_entropy",
    check="ttac.methods.law.rates:check",
    options=(
        Option("lr", 0.0, "largest learning rate; 0 takes the published value for the number of classes", low=0.0),
        Option("exponent", 0.0, "of a tensor's share of the learning rate; 0 takes the published value", low=0.0),
        Option("agreement", 0.0, "weight of the agreement with the distorted view; 0 takes 0.01 * classes", low=0.0),
        SOURCE_WEIGHT,
        PRIOR_CORRECTION,
        ESTIMATE,
        *GUARD,
        *DISTORTIONS,
        *STATISTICS,
    ),
    settle=settle,
    pixels=lambda black, white: {"black": black, "white": white},
    graphs={
        "augment": "ttac.passes.step_graphs.two_views:augment",
        "distorted_scores": "ttac.methods.law.rates:distorted_scores",
        "likeliest": "ttac.methods.law.rates:likeliest",
        "rates": "ttac.methods.law.rates:rates",
        "plain_view": "ttac.methods.law.rates:plain_view",
        "distorted_view": "ttac.methods.law.rates:distorted_view",
        "directions": "ttac.methods.law.rates:directions",
        "update": "ttac.methods.law.rates:update",
    },
    program=(
        {"run": "augment"},
        {"run": "forward", "again": True, "on": "augmented"},
        {"run": "distorted_scores"},
        {"run": "forward"},
        {"run": "likeliest"},
        {"run": "backward"},
        {"run": "rates"},
        {"run": "plain_view"},
        {"run": "backward"},
        {"run": "distorted_view"},
        {"run": "forward", "again": True, "on": "augmented"},
        {"run": "backward", "on": "augmented"},
        {"run": "directions"},
        {"run": "update"},
        {"return": "logits"},
    ),
    oracle="tests/golden/make/official_law.py",
)
