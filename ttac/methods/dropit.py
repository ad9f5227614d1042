"""Entropy minimisation with one keep ratio for every layer's input: static activation sparsity.

Chen et al., "DropIT: dropping intermediate tensors for memory-efficient DNN training", ICLR 2023, the baseline of
SURGEON.
"""

from __future__ import annotations

from ttac.methods.surgeon import SPARSITY, codec
from ttac.shared_options import STATISTICS, chosen_statistics, optimizer_options
from ttac.spec import KeepPolicy, Method, Option

METHOD = Method(
    name="dropit",
    title="entropy minimisation with a statically sparse cache of activations",
    paper="arXiv:2202.13808",
    needs="norms of any kind, or calibration data where the export folded them; with BatchNorm more than a few samples",
    statistics=chosen_statistics,
    trains=True,
    loss="entropy",
    options=(
        *optimizer_options("adam", 1e-3),
        Option("keep", 0.3, "keep ratio: the fraction of its input that every layer keeps", low=0.0, high=1.0),
        *SPARSITY,
        *STATISTICS,
    ),
    keep=KeepPolicy("keep", codec),
    graphs={"update": "ttac.passes.step_graphs.optimizers:update"},
    program=({"run": "forward"}, {"run": "backward"}, {"run": "update"}, {"return": "logits"}),
    oracle="tests/golden/make/surgeon_nets.py",
)
