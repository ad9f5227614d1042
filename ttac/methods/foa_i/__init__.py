"""FOA for streams of single samples: each sample is predicted at once, and each full window adapts.

Niu et al., "Test-time model adaptation with only forward passes", ICML 2024, FOA-I with stored images (V2).  The
official code does not hold this variant.
"""

from __future__ import annotations

from dataclasses import replace

from ttac.methods.foa import METHOD as FOA
from ttac.methods.foa import judge
from ttac.spec import Option

REMEMBERED = "remembered"
"""The window of the last samples."""

METHOD = replace(
    FOA,
    name="foa-i",
    title="prompt tokens as in `foa`, found on each window of the last samples; for single samples",
    needs="a vision transformer with a class token, and calibration data; 28 forwards of a window, once a window",
    check="ttac.methods.foa_i.remember:check",
    options=(
        *FOA.options,
        Option("interval", 16, "number of samples in a window; the prompts change once a window", low=2, high=4096),
    ),
    graphs={**FOA.graphs, "remember": "ttac.methods.foa_i.remember:remember"},
    program=(
        {"run": "remember"},
        {"run": "forward"},
        {"when": "window.full", "then": ({"run": "forward", "again": True, "on": REMEMBERED}, *judge(on=REMEMBERED))},
        {"return": "logits"},
    ),
    oracle="tests/methods/test_foa_i.py",
)
