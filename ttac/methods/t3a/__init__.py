"""The classifier replaced by prototypes of the classes, made of the stream's most certain features; no gradient.

Iwasawa and Matsuo, "Test-time classifier adjustment module for model-agnostic domain generalization", NeurIPS 2021.
The logits are products with vectors of length 1, so their softmax is less certain than that of the source model.
"""

from __future__ import annotations

from ttac.shared_options import FOLLOWING, PRIOR_CORRECTION
from ttac.spec import Method, Option

METHOD = Method(
    name="t3a",
    title="class prototypes from the most certain features in place of the classifier; no gradient",
    paper="",
    needs="classes from a linear layer; single samples suffice",
    adapts=False,
    refine="ttac.methods.t3a.prototypes:classify_by_prototypes",
    oracle="tests/golden/make/official_methods.py",
    options=(
        Option("supports", 20, "number of features that a class keeps, those of least entropy", low=1),
        PRIOR_CORRECTION,
        *FOLLOWING,
    ),
)
