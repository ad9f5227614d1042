"""Predictions of a batch corrected by each other: samples with alike features get alike labels; no norm is touched.

Boudiaf et al., "Parameter-free online test-time adaptation", CVPR 2022.  Made for streams whose neighbouring samples
share a class; a batch of one stays as it is, and a well-mixed one gains nothing.  Its logits are ln z, of which the
softmax is the assignment z.
"""

from __future__ import annotations

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
        Option("affinity", "rbf", "how alike two samples are, of their features", choices=("rbf", "knn", "linear")),
        Option("neighbours", 5, "with `rbf`: the one whose distance sets the width; with `knn`: how many", low=1),
        Option("symmetric", False, "with `knn`: two samples are as near as the mean of both ways"),
        Option("weight", 1.0, "how much the others' labels count against the model's own prediction", low=0.0),
        Option("iterations", 20, "of the fixed-point equation; each is three small operators", low=1, high=200),
    ),
)
