"""Test-time entropy minimisation: batch statistics, and scale and bias of the norms trained on the prediction entropy.

Wang et al., "Tent: fully test-time adaptation by entropy minimization", ICLR 2021.  The logits of a step are those from
before its update, as in the paper's code.
"""

from __future__ import annotations

from ttac.shared_options import STATISTICS, chosen_statistics, optimizer_options
from ttac.spec import Method

METHOD = Method(
    name="tent",
    title="entropy minimisation over scale and bias of the norms",
    paper="arXiv:2006.10726",
    needs="norms of any kind, or calibration data where the export folded them; with BatchNorm more than a few samples",
    statistics=chosen_statistics,
    trains=True,
    loss="entropy",
    options=(*optimizer_options("adam", 1e-3), *STATISTICS),
    graphs={"update": "ttac.passes.step_graphs.optimizers:update"},
    program=({"run": "forward"}, {"run": "backward"}, {"run": "update"}, {"return": "logits"}),
    oracle="benchmarks/pytorch_peers.py:Tent",
)
