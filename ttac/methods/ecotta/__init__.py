"""Small networks beside the frozen blocks learn from certain predictions, and stay near the features of the blocks.

Song et al., "EcoTTA: Memory-efficient continual test-time adaptation via self-distilled regularization", CVPR 2023.
The authors published no code.  The steps are those of the code of others, Lily-Le/EcoTTA.  The networks warm up while
compiling, on source samples: the method needs calibration data.
"""

from __future__ import annotations

from ttac.shared_options import SEED, optimizer_options
from ttac.spec import BATCH_STATISTICS, Method, Option

GRAPHS = "ttac.methods.ecotta.steps"
BOTH = {
    "graphs": {"both": f"{GRAPHS}:both", "update": f"{GRAPHS}:update"},
    "program": ({"run": "forward"}, {"run": "both"}, {"run": "backward"}, {"run": "update"}, {"return": "logits"}),
}

METHOD = Method(
    name="ecotta",
    title="networks beside the frozen blocks, warmed up while compiling, learn from certain predictions",
    paper="arXiv:2303.01904",
    needs="calibration data for the warm-up, BatchNorm, and a convolutional network of blocks; batches of about 16",
    statistics=lambda settings: BATCH_STATISTICS,
    check="ttac.methods.ecotta.meta_networks:check",
    refine="ttac.methods.ecotta.meta_networks:with_meta_networks",
    loss=f"{GRAPHS}:certain_and_near",
    options=(
        *optimizer_options("sgd", 5e-3),
        Option("margin", 0.4, "a sample is learned from if its entropy is below this times ln(classes)", low=0.0),
        Option("nearness", 0.25, "weight of the distance from the features of the frozen blocks", low=0.0),
        Option("joint", False, "one step on the sum of both losses, as in the paper: half the cost"),
        Option("parts", 5, "number of parts that the blocks are divided into, each with a network", low=1, high=32),
        Option(
            "warmup_labels",
            "",
            "file with the labels of the calibration data, .npy or .npz; empty: those of the source",
        ),
        Option("warmup_epochs", 10, "passes of the warm-up over the calibration data", low=0),
        Option("warmup_lr", 0.05, "learning rate of the warm-up", low=0.0),
        Option("warmup_file", "", "file that keeps the warm-up after each pass; a compile with it goes on there"),
        SEED,
    ),
    graphs={
        "keep_near": f"{GRAPHS}:keep_near",
        "learn_certain": f"{GRAPHS}:learn_certain",
        "update": f"{GRAPHS}:update",
    },
    program=(
        {"run": "forward", "again": True},
        {"run": "keep_near"},
        {"run": "backward"},
        {"run": "update"},
        {"run": "forward"},
        {"run": "learn_certain"},
        {"when": "selected", "then": ({"run": "backward"}, {"run": "update"})},
        {"return": "logits"},
    ),
    variants={"joint": BOTH},
    oracle="tests/golden/make/official_ecotta.py",
)
