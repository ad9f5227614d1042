"""Entropy minimisation on samples whose prediction depends on the shape: shuffled patches make it less likely.

Lee et al., "Entropy is not enough for test-time adaptation: from the perspective of disentangled factors", ICLR 2024.
ttac runs the shuffled images of the whole batch, and the official code those with low entropy only.  So batch norms see
other batches of shuffled images there; group and layer norms make no difference.
"""

from __future__ import annotations

from ttac.shared_options import EXCLUDE_LAST_STAGE, SEED, WINDOW, optimizer_options, published_lr
from ttac.spec import BATCH_STATISTICS, Method, Option

METHOD = Method(
    name="deyo",
    title="entropy minimisation on samples whose prediction depends on the shape",
    paper="arXiv:2403.07366",
    needs="images with one class each, and norms of any kind; with BatchNorm more than a few samples",
    statistics=lambda settings: BATCH_STATISTICS,
    trains=True,
    loss="weighted_entropy",
    check="ttac.methods.deyo.shape:check",
    choose_trained="ttac.passes.step_graphs.last_stage:before_last_stage",
    options=(
        *optimizer_options("sgd"),
        Option("margin", 0.5, "a sample is learned from if its entropy is below this times ln(classes)", low=0.0),
        Option("strength", 0.4, "a sample weighs e to the power of this times ln(classes), less its entropy", low=0.0),
        Option("shape_margin", 0.2, "least fall of the likeliest class's probability in the shuffled image", low=-1.0),
        Option("patches", 4, "number of patches of an image along each side", low=2, high=16),
        SEED,
        EXCLUDE_LAST_STAGE,
        WINDOW,
    ),
    settle=published_lr,
    graphs={
        "shuffle": "ttac.methods.deyo.shape:shuffle",
        "keep_shuffled": "ttac.methods.deyo.shape:keep_shuffled",
        "weigh_shape": "ttac.methods.deyo.shape:weigh_shape",
        "update": "ttac.passes.step_graphs.optimizers:update",
    },
    program=(
        {"run": "shuffle"},
        {"run": "forward", "again": True, "on": "shuffled"},
        {"run": "keep_shuffled"},
        {"run": "forward"},
        {"run": "weigh_shape"},
        {"when": "selected", "then": ({"run": "backward"}, {"run": "update"})},
        {"return": "logits"},
    ),
    oracle="tests/golden/make/official_methods.py",
)
