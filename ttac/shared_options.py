"""Options and variants that several methods declare: statistics of adapted norms, optimizer, guard, class options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ttac.spec import (
    AVERAGE_STATISTICS,
    BATCH_STATISTICS,
    BLEND_STATISTICS,
    RENORM_STATISTICS,
    Facts,
    Option,
    Settings,
    Statistics,
)

WINDOW = Option(
    "window",
    0,
    "for steps with few samples: keep the last samples in the state, this many, and adapt once per full window; "
    "0 adapts to the samples of each step",
    low=0,
    high=4096,
)
"""A ring buffer of the stream (`ttac.passes.step_graphs.window`)."""

STATISTICS = (
    Option(
        "statistics",
        "batch",
        "statistics of adapted norms: of this batch, of this batch and the source, a running average, or a running "
        "average with the gradient of batch statistics (DELTA)",
        choices=("batch", "blend", "ema", "renorm"),
    ),
    Option("prior", 16.0, "with `blend`: number of samples that the source statistics count as", low=0.0),
    Option(
        "statistics_momentum", 0.1, "with `ema`, `renorm`: weight of the newest batch in the average", low=0.0, high=1.0
    ),
    WINDOW,
)
"""Options of a method whose batch norms take other statistics than those of the source."""

POLICIES = {
    policy.name: policy for policy in (BATCH_STATISTICS, BLEND_STATISTICS, AVERAGE_STATISTICS, RENORM_STATISTICS)
}
"""Value of the option `statistics` -> policy."""

SOURCE_WEIGHT = Option(
    "source_weight",
    0.0,
    "blends the source into the trained tensors after each step; 0.01 forgets updates after about 100 steps",
    low=0.0,
    high=1.0,
)
"""Weight ensembling (Marsden et al., arXiv:2306.00650), which bounds the drift of long streams."""

PRIOR_CORRECTION = Option(
    "prior_correction", False, "multiply the returned scores by the smoothed frequencies of the classes in the batch"
)
"""Prior correction (Marsden et al., arXiv:2306.00650), for streams whose batches hold few of the classes."""

ESTIMATE = Option(
    "estimate",
    0,
    "estimate the error without labels: the classifier predicts each sample this many times more, with dropout; 10 is "
    "the published number, 0 is off",
    low=0,
    high=100,
)
"""AETTA (Lee et al., arXiv:2404.01351; `ttac.passes.step_graphs.error_estimate`)."""

GUARD = (
    Option(
        "guard",
        "on",
        "batches with little information are predicted but not learned from, and the trained tensors stay near the "
        "source; `off` is the method as published",
        choices=("on", "off"),
    ),
    Option(
        "guard_radius",
        0.0,
        "with `guard`: largest distance of the trained tensors from the source, in units of the source's length; 0 "
        "takes 0.03 with batch norms, 0.01 without",
        low=0.0,
    ),
    Option(
        "guard_information",
        0.7,
        "with `guard`: a batch with less than this fraction of the usual information is not learned from",
        low=0.0,
        high=1.0,
    ),
    Option("guard_patience", 20, "with `guard`: unlearned batches in a row after which the state is reset", low=1),
    Option("guard_period", 0, "with `guard`: steps after which the state is reset; 0 for never", low=0),
    Option(
        "guard_check",
        20,
        "with `guard` and `--calibration`: every step of this number predicts calibration samples in place of "
        "learning; 0 for never",
        low=0,
    ),
    Option(
        "guard_loss",
        0.004,
        "with `guard_check`: the state turns back above this mean of 1 - p/m over these samples, a single lost one "
        "aside; p is the probability of the source's class, m that of the likeliest",
        low=0.0,
        high=1.0,
    ),
)
"""Options of the guard (`ttac.passes.step_graphs.guard`)."""
_FOLLOWING: Mapping[str, Mapping[str, Any]] = {
    "guard_information": {
        "default": 0.1,
        "help": "with `guard`: statistics do not follow a batch with less of the usual information",
    },
    "guard_check": {
        "default": 50,
        "help": "with `guard` and `--calibration`: every step of this number also predicts calibration samples; 0 for "
        "never",
    },
}
FOLLOWING = tuple(
    replace(option, **_FOLLOWING.get(option.name, {})) for option in GUARD if option.name != "guard_radius"
)
"""Options of the guard of a method that trains nothing, and keeps statistics of the stream."""

PUBLISHED_LR = Option(
    "lr", 0.0, "learning rate; 0 takes the official code's for the batch and the kind of norms", low=0.0
)
"""Learning rate of a method that `published_lr` settles."""

EXCLUDE_LAST_STAGE = Option(
    "exclude_last_stage", True, "leave the norms of the last stage, and the last norm, untrained"
)
"""Option of a method whose trained norms `ttac.passes.step_graphs.last_stage` chooses."""

SEED = Option("seed", 0, "start of the random numbers", low=0)
"""Option of a method that draws random numbers."""

DISTORTIONS = (
    Option("black", "0", "a black pixel as the model reads it; commas between values of three channels"),
    Option("white", "1", "a white pixel, likewise; normalised inputs have (0 - m)/s and (1 - m)/s"),
    SEED,
)
"""Options of a method that learns from distorted images."""

COME = Option("come", False, "keep the length of the scores and add an answer `uncertain`, against collapse (COME)")
"""Conservative entropy (Zhang et al., arXiv:2410.10894)."""

CONSERVATIVE = "ttac.passes.differentiate.conservative:conservative"
"""The loss of `come`."""

LENGTHS = {"lengths": "ttac.passes.step_graphs.class_options:lengths"}
"""The graph that `come` runs before each backward."""

BALANCE = (
    Option("balance", False, "samples of classes that were rare so far weigh more (DELTA's DOT)"),
    Option(
        "balance_decay", 0.95, "with `balance`: decay of the average of the classes' probabilities", low=0.0, high=1.0
    ),
)
"""Dynamic online re-weighting (Zhao et al., ICLR 2023)."""


def chosen_statistics(settings: Settings) -> Statistics:
    """Return the policy that the option `statistics` names."""
    return POLICIES[settings["statistics"]]


def published_lr(settings: Settings, facts: Facts) -> Settings:
    """Return the settings with a published learning rate if none is set (Niu et al., arXiv:2302.12400, official code).

    There is one rule for layer norms, and one for other norms.  The rate grows with the planned batch; a single sample
    doubles the rate.
    """
    transformer = facts.kinds <= {"layer", "rms"}
    if transformer:
        lr = 1e-3 / 64 * facts.batch
    else:
        lr = 2.5e-4 if facts.batch >= 32 else 2.5e-4 / 64 * facts.batch * 2
    return {**settings, "lr": settings["lr"] or (2 * lr if facts.batch == 1 else lr)}


def come_variant(
    graphs: Mapping[str, str], program: Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], ...]]
) -> dict[str, Mapping[str, Any]]:
    """Return the variant `come` of a method with these `graphs`; `program` takes the word before each backward."""
    return {
        "come": {"loss": CONSERVATIVE, "graphs": {**graphs, **LENGTHS}, "program": program({"run": "lengths"})},
    }


def optimizer_options(optimizer: str, lr: float | None = None) -> tuple[Option, ...]:
    """Return the options of a method that trains, with the default `optimizer` ("adam" or "sgd") and learning rate.

    Without `lr`, the learning rate is `PUBLISHED_LR`.
    """
    return (
        PUBLISHED_LR if lr is None else Option("lr", lr, "learning rate", low=0.0),
        Option("optimizer", optimizer, "how gradients become steps", choices=("adam", "sgd")),
        Option("momentum", 0.9, "with `sgd`: momentum", low=0.0, high=1.0),
        Option("nesterov", False, "with `sgd`: Nesterov's momentum"),
        Option("beta1", 0.9, "with `adam`: decay of the gradient's average", low=0.0, high=0.9999),
        Option("beta2", 0.999, "with `adam`: decay of the squared gradient's average", low=0.0, high=0.9999),
        Option("eps", 1e-8, "with `adam`: added to the root of the squared gradient's average", low=0.0),
        Option("weight_decay", 0.0, "pulls the trained tensors to zero; added to their gradient", low=0.0),
        SOURCE_WEIGHT,
        PRIOR_CORRECTION,
        ESTIMATE,
        *GUARD,
    )
