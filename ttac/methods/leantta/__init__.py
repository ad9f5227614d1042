"""Each sample's own statistics, blended twice with the source's: no gradient, no state, one forward.

Dong et al., "LeanTTA: a backpropagation-free and stateless approach to quantized test-time adaptation on edge devices",
2025.  The paper's values of tau and lambda, and which norms adapt, are not known here; the defaults come from
`docs/leantta-study.md`.  Readings of the paper that differ are options.
"""

from __future__ import annotations

from ttac.spec import Method, Option, Statistics

STATISTICS = Statistics("sample", "ttac.methods.leantta.per_sample:blend_samples", needs="sample", neutral={"tau": 1.0})
"""Each sample's statistics, blended with the source's; with `tau=1` all of the weight is on the source."""

METHOD = Method(
    name="leantta",
    title="statistics of each sample by itself, held to the source's; no gradient, no state",
    paper="arXiv:2503.15889",
    needs="BatchNorm over more than one position, or calibration data where it was folded; single samples will do",
    statistics=lambda settings: STATISTICS,
    oracle="tests/support/per_sample_oracle.py:restated",
    options=(
        Option(
            "tau",
            0.9,
            "share of the source in the first blend; of single norms `tau@PATTERN=...`",
            low=0.0,
            high=1.0,
            per_site=True,
        ),
        Option(
            "lambda",
            0.5,
            "the second blend gives the source d^lambda, d the distance from it: 0 is the source, more adapts more; "
            "of single norms `lambda@PATTERN=...`",
            low=0.0,
            per_site=True,
        ),
        Option(
            "distance",
            "sum",
            "how the distances of a norm's channels become one: wide norms are always far by their sum",
            choices=("sum", "mean"),
        ),
        Option(
            "metric",
            "variance",
            "what a channel's squared distance is divided by: the source's variance, or that squared",
            choices=("variance", "squared"),
        ),
        Option(
            "variance",
            "biased",
            "of a sample's values: divided by their number, or by one less",
            choices=("biased", "unbiased"),
        ),
    ),
)
