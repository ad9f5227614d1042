"""Adaptive batch normalisation: statistics of the test data in place of those of the training data.

Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020; earlier
Li et al. (arXiv:1603.04779).  With `statistics=blend` the source statistics count as `prior` further samples:
mean = (prior*source + N*batch) / (prior + N), and the variance likewise.
"""

from __future__ import annotations

from ttac.spec import AVERAGE_STATISTICS, BATCH_STATISTICS, BLEND_STATISTICS, Method, Option, Settings, Statistics

STATISTICS = (
    Option(
        "statistics",
        "batch",
        "statistics of adapted norms: of this batch, of this batch and the source, or a running average",
        choices=("batch", "blend", "ema"),
    ),
    Option("prior", 16.0, "with `blend`: number of samples that the source statistics count as", low=0.0),
    Option("statistics_momentum", 0.1, "with `ema`: weight of the newest batch in the average", low=0.0, high=1.0),
)

POLICIES = {policy.name: policy for policy in (BATCH_STATISTICS, BLEND_STATISTICS, AVERAGE_STATISTICS)}


def chosen_statistics(settings: Settings) -> Statistics:
    """The policy that the option `statistics` names."""
    return POLICIES[settings["statistics"]]


METHOD = Method(
    name="bn",
    title="batch statistics of the test data, no gradient",
    paper="arXiv:2006.16971",
    needs="BatchNorm, or calibration data where the export folded it",
    statistics=chosen_statistics,
    options=STATISTICS,
    oracle="tests/methods/test_methods.py:restated",
)
