"""Predictions of a batch corrected by each other: samples with alike features get alike labels; no norm is touched.

Boudiaf et al., "Parameter-free online test-time adaptation", CVPR 2022.  Made for streams whose neighbouring samples
share a class.  A batch of one stays unchanged, and a well-mixed batch gains nothing.  The logits are ln z; their
softmax is the assignment z.
"""

from __future__ import annotations

from ttac.shared_options import PRIOR_CORRECTION
from ttac.spec import Method, Option

METHOD = Method(
    name="lame",
    title="predictions of a batch made to agree where features are alike; no gradient, no state",
    paper="arXiv:2201.05718",
    needs="classes from a linear layer; batches of samples that follow each other in time",
    adapts=False,
    refine="ttac.methods.lame.laplacian:assign",
    oracle="tests/methods/test_lame.py",
    options=(
        Option("affinity", "rbf", "how alike the features of two samples are", choices=("rbf", "knn", "linear")),
        Option(
            "neighbours",
            5,
            "with `rbf`: the neighbour whose distance sets the width; with `knn`: number of neighbours",
            low=1,
        ),
        Option("symmetric", False, "with `knn`: the affinity of two samples is the mean of both directions"),
        Option("weight", 1.0, "weight of the other samples' labels against the model's prediction", low=0.0),
        Option(
            "iterations", 100, "iterations of the fixed-point equation, three small operators each", low=1, high=200
        ),
        PRIOR_CORRECTION,
    ),
)
