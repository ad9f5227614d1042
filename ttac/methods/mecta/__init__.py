"""Entropy minimisation with statistics that follow the stream as fast as it drifts; norms without drift do not learn.

Hong et al., "MECTA: memory-economic continual test-time model adaptation", ICLR 2023.  Each step caches random channels
of a norm's input and drops the others: `keep` is 1 - `prune_q` of the official code.  The code lets a norm learn one
step late; ttac follows the paper.
"""

from __future__ import annotations

from ttac.shared_options import SEED, optimizer_options
from ttac.spec import KeepPolicy, Method, Option, Settings, Statistics

GATED = Statistics("gated", "ttac.methods.mecta.gated:use_gated", needs="batch")


def statistics(settings: Settings) -> Statistics:
    """Running statistics with a gate."""
    return GATED


def codec(settings: Settings) -> str:
    """The codec of the cached inputs; none if every channel is kept."""
    return "channels" if settings["keep"] < 1 else ""


METHOD = Method(
    name="mecta",
    title="entropy minimisation with statistics that follow drift; norms without drift stay untrained",
    paper="ICLR 2023",
    needs="BatchNorm, in batches of about 16; no norm of another kind",
    statistics=statistics,
    trains=True,
    loss="entropy",
    check="ttac.methods.mecta.gated:check",
    options=(
        *optimizer_options("sgd", 1e-4),
        Option(
            "least_drift",
            0.00125,
            "a norm learns if its statistics move by more than this fraction towards the batch; 0 lets all norms learn",
            low=0.0,
            high=1.0,
        ),
        Option("drift_scale", 1.0, "factor of the distance between batch and running statistics", low=0.0),
        Option(
            "keep",
            0.3,
            "fraction of the channels of its input that a norm keeps for the gradient, drawn in each step; 1 keeps all",
            low=0.0,
            high=1.0,
        ),
        SEED,
    ),
    keep=KeepPolicy("keep", codec),
    graphs={"gate": "ttac.methods.mecta.gated:gate", "update": "ttac.methods.mecta.frozen:update"},
    program=(
        {"run": "forward"},
        {"run": "gate"},
        {"when": "some", "then": ({"run": "backward"}, {"run": "update"})},
        {"return": "logits"},
    ),
    oracle="tests/golden/make/official_batch_norms.py",
)
