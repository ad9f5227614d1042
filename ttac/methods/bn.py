"""Adaptive batch normalisation: statistics of the test data in place of those of the training data.

Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020; earlier
Li et al. (arXiv:1603.04779).  With `statistics=blend` the source statistics count as `prior` further samples:
mean = (prior*source + N*batch) / (prior + N), and the variance likewise.
"""

from __future__ import annotations

from ttac.shared_options import ESTIMATE, FOLLOWING, PRIOR_CORRECTION, STATISTICS, chosen_statistics
from ttac.spec import Method

METHOD = Method(
    name="bn",
    title="batch statistics of the test data, no gradient",
    paper="arXiv:2006.16971",
    needs="BatchNorm, or calibration data where the export folded it",
    statistics=chosen_statistics,
    options=(*STATISTICS, PRIOR_CORRECTION, ESTIMATE, *FOLLOWING),
    oracle="tests/methods/test_batch_statistics.py:restated",
)
