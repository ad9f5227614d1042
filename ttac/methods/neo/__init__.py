"""The mean of the features moved to where the classifier expects it; no gradient, one subtraction.

Murphy et al., "NEO: No-optimization test-time adaptation through latent re-centering", ICLR 2026.  The method subtracts
the mean of all features since the reset, this batch included.  So it takes zero for the mean of the source.  With
`origin=source`, an addition of ttac, it subtracts only the distance from the mean of the calibration data.
"""

from __future__ import annotations

from ttac.shared_options import ESTIMATE, FOLLOWING, PRIOR_CORRECTION
from ttac.spec import Method, Option

METHOD = Method(
    name="neo",
    title="features re-centred before the classifier; no gradient, no hyperparameter",
    paper="arXiv:2510.05635",
    needs="classes from a linear layer; single samples suffice",
    adapts=False,
    refine="ttac.methods.neo.centred:centred",
    oracle="tests/golden/make/official_methods.py",
    options=(
        Option(
            "origin",
            "zero",
            "new mean of the features: zero (published), or that of the calibration data, which spares clean streams",
            choices=("zero", "source"),
        ),
        Option(
            "newest",
            0.0,
            "weight of the newest batch in the mean, for streams that change (0.1 in the official code); 0 averages "
            "all samples since the reset",
            low=0.0,
            high=1.0,
        ),
        PRIOR_CORRECTION,
        ESTIMATE,
        *FOLLOWING,
    ),
)
