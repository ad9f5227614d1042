"""Entropy minimisation with a robust function of each sample's entropy, which learns little from uncertain samples.

The function is Barron's (arXiv:1701.03077).  "REALM: Robust entropy adaptive loss minimization" (arXiv:2309.03964)
proposes a robust loss for single samples; its exact loss is not public, so this method has another name.
"""

from __future__ import annotations

from ttac.shared_options import STATISTICS, chosen_statistics, optimizer_options
from ttac.spec import Method, Option

METHOD = Method(
    name="robust-entropy",
    title="entropy minimisation with a robust loss: uncertain samples count little instead of not at all",
    paper="arXiv:1701.03077",
    needs="norms of any kind, or calibration data where the export folded them; with BatchNorm more than a few samples",
    statistics=chosen_statistics,
    trains=True,
    loss="weighted_entropy",
    options=(
        *optimizer_options("adam", 1e-3),
        Option(
            "robust_shape",
            -2.0,
            "how soon uncertain samples stop to count: 2 is the squared entropy, 0 Cauchy's loss, -2 Geman and "
            "McClure's",
            low=-100.0,
            high=2.0,
        ),
        Option("robust_scale", 0.4, "entropy from which on samples count less, times ln(classes)", low=0.01),
        *STATISTICS,
    ),
    graphs={
        "weigh_robust": "ttac.methods.robust_entropy.weigh_robust:weigh_robust",
        "update": "ttac.passes.step_graphs.optimizers:update",
    },
    program=({"run": "forward"}, {"run": "weigh_robust"}, {"run": "backward"}, {"run": "update"}, {"return": "logits"}),
    oracle="tests/methods/test_entropy_losses.py:robust",
)
