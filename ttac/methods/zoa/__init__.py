"""Norms trained by a random perturbation and a second forward, with a memory of past domains; no gradient.

Deng et al., "Test-time model adaptation for quantized neural networks", ACM MM 2025, with the official code.  A step
compares the loss with that of norms moved by random numbers, and takes the quotient as the gradient.  Where the code
and the paper's words differ, the step follows the code: both forwards move the domain's statistics, so each batch
counts as 0.36.  The mixing weight of the source starts at 0, where the code draws it; the weights of the first
published steps do not depend on it.  ttac does not follow the code in two places.  In a full memory the code compares
past domains by an outdated table, and ttac computes the similarities anew.  The code for ResNet shifts all features to
the mean of the last one, and ttac shifts each to its own, as the paper and the code for transformers do.
"""

from __future__ import annotations

from ttac.shared_options import GUARD, PRIOR_CORRECTION, SEED, chosen_statistics
from ttac.spec import Facts, Method, Option, Settings

PERTURBED = "perturbed"
TRANSFORMER = {"lr": 5e-4, "perturbation": 0.02, "discrepancy": 30.0, "domain_distance": 0.1}
CONVOLUTIONAL = {"lr": 1e-4, "perturbation": 0.01, "discrepancy": 1.0, "domain_distance": 0.2}
"""Published settings for ViT-B and for ResNet-50, both in 8 bits."""


def settle(settings: Settings, facts: Facts) -> Settings:
    """The settings with the published values for layer norms or other norms where none are set."""
    published = TRANSFORMER if facts.kinds <= {"layer", "rms"} else CONVOLUTIONAL
    return {**settings, **{name: settings[name] or value for name, value in published.items()}}


METHOD = Method(
    name="zoa",
    title="norms learn from a random perturbation and a second forward, and remember past domains; no gradient",
    paper="arXiv:2508.02180",
    needs="classes from a linear layer, norms of any kind, batches, and calibration data; 2 forwards a step, also int8",
    statistics=chosen_statistics,
    trains=True,
    check="ttac.methods.zoa.forward:check",
    choose_trained="ttac.methods.zoa.middle_norms:middle_norms",
    refine="ttac.methods.zoa.forward:with_loss",
    options=(
        Option("lr", 0.0, "learning rate; 0 takes the published one: 5e-4 for layer norms, else 1e-4", low=0.0),
        Option("weight_decay", 0.4, "pulls the trained tensors to the mixture of the source and past domains", low=0.0),
        Option("perturbation", 0.0, "size of the perturbation; 0 takes 0.02 for layer norms, else 0.01", low=0.0),
        Option(
            "discrepancy",
            0.0,
            "weight of the distance from the source's features in the loss; 0 takes 30 for layer norms, else 1",
            low=0.0,
        ),
        Option("domains", 32, "most past domains in the memory", low=1, high=1024),
        Option(
            "domain_distance",
            0.0,
            "distance of a batch from the domain that begins a new one; 0 takes 0.1 for layer norms, else 0.2",
            low=0.0,
        ),
        Option("domain_samples", 64, "fewest samples of a batch that shows a new domain", low=1),
        Option("mixing_lr", 0.01, "learning rate of the weights of past domains", low=0.0),
        Option("mixing_perturbation", 0.05, "size of their perturbation", low=1e-6),
        Option("mixing_decay", 0.1, "decay of these weights", low=0.0),
        Option("shift", 1.0, "part of the features' distance from the source's mean that is taken back", low=0.0),
        Option("newest", 0.1, "weight of the newest batch in the mean of the stream's features", low=0.0, high=1.0),
        Option("exclude_ends", True, "leave norms untrained in the first block, in the last stage and before sums"),
        Option(
            "statistics",
            "batch",
            "statistics of adapted batch norms: of this batch, or of this batch and the source",
            choices=("batch", "blend"),
        ),
        Option("prior", 16.0, "with `blend`: number of samples that the source statistics count as", low=0.0),
        SEED,
        PRIOR_CORRECTION,
        *GUARD,
    ),
    settle=settle,
    graphs={
        "remember": "ttac.methods.zoa.domains:remember",
        "perturb": "ttac.methods.zoa.perturbation:perturb",
        "update": "ttac.methods.zoa.perturbation:update",
    },
    program=(
        {"run": "forward"},
        {"when": "domain.changed", "then": ({"run": "remember"},), "follows": True},
        {"run": "perturb"},
        {"run": "forward", "again": True, "set": PERTURBED},
        {"run": "update"},
        {"return": "logits"},
    ),
    oracle="tests/golden/make/official_zoa.py",
)
