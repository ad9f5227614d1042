"""Entropy minimisation of a second view of the features, which a trained matrix makes, tied to the plain prediction.

Chen et al., "ZeroSiam: An efficient asymmetry for test-time entropy optimization without collapse", ICLR 2026, with the
authors' code.  The prediction never reads the matrix.
"""

from __future__ import annotations

from ttac.shared_options import STATISTICS, chosen_statistics, optimizer_options, published_lr
from ttac.spec import Facts, Method, Option, Settings


def settle(settings: Settings, facts: Facts) -> Settings:
    """Return the settings with the published learning rates where none is set.

    The rates are multiples of those of `published_lr`, by the kind of norms: 5 and 5 for norms and matrix of a
    transformer, else 10 and 100.
    """
    norms, matrix = (5, 5) if facts.kinds <= {"layer", "rms"} else (10, 100)
    rate = published_lr({**settings, "lr": 0.0}, facts)["lr"]
    if facts.batch == 1:
        rate /= 2  # the authors' code has no other rule for a single sample
    given = {"lr": norms * rate, "predictor_lr": matrix * rate}
    return {**settings, **{name: settings[name] or value for name, value in given.items()}}


METHOD = Method(
    name="zerosiam",
    title="entropy minimisation on features behind a trained matrix, tied to the plain prediction; no collapse",
    paper="arXiv:2509.23183",
    needs="classes from a linear layer, and norms of any kind; with BatchNorm more than a few samples",
    statistics=chosen_statistics,
    trains=True,
    refine="ttac.methods.zerosiam.predictor:with_predictor",
    loss="ttac.methods.zerosiam.predictor:certain_and_alike",
    options=(
        *optimizer_options("sgd"),
        Option("predictor_lr", 0.0, "learning rate of the matrix; 0 takes the official code's, as with `lr`", low=0.0),
        *STATISTICS,
    ),
    settle=settle,
    graphs={"update": "ttac.methods.zerosiam.predictor:update"},
    program=({"run": "forward"}, {"run": "backward"}, {"run": "update"}, {"return": "logits"}),
    oracle="tests/golden/make/official_methods.py",
)
