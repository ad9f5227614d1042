"""Test-time entropy minimisation: batch statistics, and scale and bias of the norms trained on the prediction entropy.

Wang et al., "Tent: fully test-time adaptation by entropy minimization", ICLR 2021.  The logits of a step are those from
before its update, as in the paper's code.  `balance=true` and `come=true` are parts of DELTA and COME.
"""

from __future__ import annotations

from ttac.shared_options import (
    BALANCE,
    COME,
    CONSERVATIVE,
    LENGTHS,
    STATISTICS,
    chosen_statistics,
    optimizer_options,
)
from ttac.spec import Method

WEIGHED = {"weigh": "ttac.passes.step_graphs.class_options:weigh"}
UPDATE = {"update": "ttac.passes.step_graphs.optimizers:update"}
LEARN = ({"run": "backward"}, {"run": "update"}, {"return": "logits"})

WITH_BALANCE = {
    "loss": "weighted_entropy",
    "graphs": {**WEIGHED, **UPDATE},
    "program": ({"run": "forward"}, {"run": "weigh"}, *LEARN),
}
WITH_COME = {
    "loss": CONSERVATIVE,
    "graphs": {**WEIGHED, **LENGTHS, **UPDATE},
    "program": ({"run": "forward"}, {"run": "weigh"}, {"run": "lengths"}, *LEARN),
}

METHOD = Method(
    name="tent",
    title="entropy minimisation over scale and bias of the norms",
    paper="arXiv:2006.10726",
    needs="norms of any kind, or calibration data where the export folded them; with BatchNorm more than a few samples",
    statistics=chosen_statistics,
    trains=True,
    loss="entropy",
    check="ttac.passes.step_graphs.class_options:check",
    options=(*optimizer_options("adam", 1e-3), *BALANCE, COME, *STATISTICS),
    graphs=UPDATE,
    program=({"run": "forward"}, *LEARN),
    variants={"balance": WITH_BALANCE, "come": WITH_COME},
    oracle="benchmarks/pytorch_peers.py:Tent",
)
