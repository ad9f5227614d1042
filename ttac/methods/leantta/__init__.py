"""Statistics of each sample, blended twice with the source's: no gradient, no state, one forward.

Dong et al., "LeanTTA: a backpropagation-free and stateless approach to quantized test-time adaptation on edge devices",
2025.  The paper's values of tau and lambda, and its choice of norms, are not public; the defaults come from
`docs/leantta-study.md`.  Different readings of the paper are options.
"""

from __future__ import annotations

from ttac.shared_options import ESTIMATE, PRIOR_CORRECTION
from ttac.spec import Method, Option, Statistics

STATISTICS = Statistics("sample", "ttac.methods.leantta.per_sample:blend_samples", needs="sample", neutral={"tau": 1.0})
"""Each sample's statistics, blended with the source's; with `tau=1` all of the weight is on the source."""

METHOD = Method(
    name="leantta",
    title="statistics of each sample, blended with the source's; no gradient, no state",
    paper="arXiv:2503.15889",
    needs="BatchNorm over more than one position, or calibration data for folded norms; single samples suffice",
    statistics=lambda settings: STATISTICS,
    oracle="tests/support/per_sample_oracle.py:restated",
    options=(
        Option(
            "tau",
            0.9,
            "weight of the source in the first blend; for single norms `tau@PATTERN=...`",
            low=0.0,
            high=1.0,
            per_site=True,
        ),
        Option(
            "lambda",
            0.5,
            "the second blend gives the source the weight d^lambda, d the distance from the source: 0 is the source, a "
            "larger value adapts more; for single norms `lambda@PATTERN=...`",
            low=0.0,
            per_site=True,
        ),
        Option(
            "distance",
            "sum",
            "how the distances of a norm's channels are combined: by their sum, wide norms are always far",
            choices=("sum", "mean"),
        ),
        Option(
            "metric",
            "variance",
            "divisor of a channel's squared distance: the source's variance, or its square",
            choices=("variance", "squared"),
        ),
        Option(
            "variance",
            "biased",
            "variance of a sample's values: divided by their number, or by their number less one",
            choices=("biased", "unbiased"),
        ),
        PRIOR_CORRECTION,
        ESTIMATE,
    ),
)
