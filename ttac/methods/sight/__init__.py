"""Predictions of ordered windows that follow from the window before, with class prototypes that move; no gradient.

"SIGHT", 2026 (arXiv:2605.04617), with the authors' code and the settings of the code's script.  Made for single windows
of a sensor in the order of time.  The logits are ln q; their softmax is the belief q.
"""

from __future__ import annotations

from ttac.spec import Method, Option

METHOD = Method(
    name="sight",
    title="a window's prediction weighed by the belief after the window before; no gradient",
    paper="arXiv:2605.04617",
    needs="classes from a linear layer; single samples in the order of time",
    adapts=False,
    check="ttac.methods.sight.belief:check",
    refine="ttac.methods.sight.belief:believe",
    oracle="tests/golden/make/official_grafts.py",
    options=(
        Option("prototype_rate", 0.005, "share of a certain window in its class's prototype", low=0.0, high=1.0),
        Option("source_pull", 0.01, "share of the source in each prototype after a window", low=0.0, high=1.0),
        Option("surprise", 1.0, "growth of doubt in the last belief with the distance from its prediction", low=0.0),
        Option("habit_rate", 0.05, "share of the last belief in the frequencies of the classes", low=0.0, high=1.0),
        Option("temperature", 0.05, "of the likeness of a movement and a prototype", low=1e-3),
    ),
)
