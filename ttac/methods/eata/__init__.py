"""Entropy minimisation on reliable, non-redundant samples, weighted, and anchored to the source by Fisher information.

Niu et al., "Efficient test-time model adaptation without forgetting", ICML 2022.  Without `--calibration`, or with
`--set fisher=0`, there is no anchor: the paper's ETA.  The mean is over the selected samples, and a batch without
selected samples changes nothing, as in the official code.  In addition, `reset` empties the moving average of
probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttac.shared_options import BALANCE, COME, STATISTICS, chosen_statistics, come_variant, optimizer_options
from ttac.spec import Facts, Method, Option, Settings


def settle(settings: Settings, facts: Facts) -> Settings:
    """The bound of redundancy that was published for data sets of about this many classes, if none is set.

    No bound was published for two classes.  A certain prediction has a cosine of 0.71 to the average of a balanced
    stream, so 0.4 would admit only classes of less than a third of the stream; 0.9 admits classes up to two thirds.
    """
    classes = facts.classes
    published = 0.9 if classes <= 2 else 0.4 if classes <= 10 else 0.1 if classes <= 100 else 0.05
    return {**settings, "redundancy": settings["redundancy"] or published}


GRAPHS = {
    "weigh_reliable": "ttac.methods.eata.weigh_reliable:weigh_reliable",
    "update": "ttac.methods.eata.weigh_reliable:update",
}


def program(*before_backward: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The words of a step; `before_backward` are further words of a step that learns."""
    learn = (*before_backward, {"run": "backward"}, {"run": "update"})
    return ({"run": "forward"}, {"run": "weigh_reliable"}, {"when": "selected", "then": learn}, {"return": "logits"})


METHOD = Method(
    name="eata",
    title="entropy minimisation on reliable, non-redundant samples, anchored to the source",
    paper="arXiv:2204.02610",
    needs="norms of any kind; `--calibration` for the anchor; with BatchNorm more than a few samples a batch",
    statistics=chosen_statistics,
    trains=True,
    loss="weighted_entropy",
    options=(
        *optimizer_options("sgd", 2.5e-4),
        Option("margin", 0.4, "a sample is reliable if its entropy is below this times ln(classes)", low=0.0),
        Option(
            "redundancy",
            0.0,
            "a sample is redundant if its probabilities' cosine to their average is this or more; 0 takes the "
            "published value: 0.4 up to 10 classes, 0.1 up to 100, else 0.05; for two classes, 0.9",
            low=0.0,
            high=1.0,
        ),
        Option("fisher", 2000.0, "weight of the anchor (1 for CIFAR-10 in the paper); 0 for no anchor", low=0.0),
        *BALANCE,
        COME,
        *STATISTICS,
    ),
    check="ttac.passes.step_graphs.class_options:check",
    settle=settle,
    constants="ttac.methods.eata.fisher:fisher_information",
    graphs=GRAPHS,
    program=program(),
    variants=come_variant(GRAPHS, program),
    oracle="benchmarks/pytorch_peers.py:Eata",
)
