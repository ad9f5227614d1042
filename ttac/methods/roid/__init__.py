"""Learning from diverse and certain samples on two views, with the source blended in and corrected class frequencies.

Marsden et al., "Universal test-time adaptation through weight ensembling, diversity weighting, and prior correction",
WACV 2024, with the authors' code.  The distorted view has the kept samples only, as in the code: with batch norms, its
statistics are those of these samples.
"""

from __future__ import annotations

from dataclasses import replace

from ttac.shared_options import DISTORTIONS, STATISTICS, chosen_statistics, optimizer_options
from ttac.spec import Method, Option

OWN = {"source_weight": 0.01, "prior_correction": True}
"""Defaults of shared options."""

METHOD = Method(
    name="roid",
    title="certain and diverse samples on two views; the source blended in, class frequencies corrected",
    paper="arXiv:2306.00650",
    needs="images with one class each, and norms of any kind; with BatchNorm more than a few samples a batch",
    statistics=chosen_statistics,
    trains=True,
    loss="ttac.methods.roid.certainty:likely_and_alike",
    check="ttac.methods.roid.certainty:check",
    options=(
        *(replace(option, default=OWN.get(option.name, option.default)) for option in optimizer_options("adam", 1e-3)),
        Option("probabilities_decay", 0.9, "weight of the past in the classes' probabilities", low=0.0, high=1.0),
        Option("temperature", 1 / 3, "of the weights exp(diversity * certainty / temperature)", low=1e-3),
        *DISTORTIONS,
        *STATISTICS,
    ),
    pixels=lambda black, white: {"black": black, "white": white},
    graphs={
        "augment": "ttac.methods.roid.certainty:augment",
        "weigh_diverse": "ttac.methods.roid.certainty:weigh_diverse",
        "keep_gradients": "ttac.methods.roid.certainty:keep_gradients",
        "add_gradients": "ttac.methods.roid.certainty:add_gradients",
        "update": "ttac.passes.step_graphs.two_views:update",
    },
    program=(
        {"run": "forward", "again": True},
        {"run": "weigh_diverse"},
        {"run": "augment"},
        {"run": "forward", "again": True, "on": "augmented"},
        {"run": "backward", "on": "augmented"},
        {"run": "keep_gradients"},
        {"run": "forward"},
        {"run": "backward"},
        {"run": "add_gradients"},
        {"run": "update"},
        {"return": "logits"},
    ),
    oracle="tests/golden/make/official_methods.py",
)
