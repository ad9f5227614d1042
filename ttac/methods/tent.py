"""Test-time entropy minimisation: batch statistics, and scale and bias of the norms trained on the prediction entropy.

Wang et al., "Tent: fully test-time adaptation by entropy minimization", ICLR 2021.  The logits of a step are those from
before its update, as in the paper's code.
"""

from __future__ import annotations

from ttac.methods.bn import STATISTICS, chosen_statistics
from ttac.spec import Method, Option

SOURCE_WEIGHT = Option(
    "source_weight",
    0.0,
    "blends the source into the trained tensors after each step; 0.01 forgets updates after about 100 steps",
    low=0.0,
    high=1.0,
)
"""Weight ensembling (Marsden et al., arXiv:2306.00650), which bounds the drift of long streams."""


def trained_with(optimizer: str, lr: float) -> tuple[Option, ...]:
    """The options of the optimizer, with these defaults."""
    return (
        Option("lr", lr, "learning rate", low=0.0),
        Option("optimizer", optimizer, "how gradients become steps", choices=("adam", "sgd")),
        Option("momentum", 0.9, "with `sgd`: momentum", low=0.0, high=1.0),
        Option("nesterov", False, "with `sgd`: Nesterov's momentum"),
        Option("beta1", 0.9, "with `adam`: decay of the gradient's average", low=0.0, high=0.9999),
        Option("beta2", 0.999, "with `adam`: decay of the squared gradient's average", low=0.0, high=0.9999),
        Option("eps", 1e-8, "with `adam`: added to the root of the squared gradient's average", low=0.0),
        Option("weight_decay", 0.0, "pulls the trained tensors to zero; added to their gradient", low=0.0),
        SOURCE_WEIGHT,
    )


METHOD = Method(
    name="tent",
    title="entropy minimisation over scale and bias of the norms",
    paper="arXiv:2006.10726",
    needs="norms of any kind, or calibration data where the export folded them; with BatchNorm more than a few samples",
    statistics=chosen_statistics,
    trains=True,
    loss="entropy",
    options=(*trained_with("adam", 1e-3), *STATISTICS),
    graphs={"update": "ttac.passes.step_graphs.optimizers:update"},
    program=({"run": "forward"}, {"run": "backward"}, {"run": "update"}, {"return": "logits"}),
    oracle="benchmarks/pytorch_peers.py:Tent",
)
