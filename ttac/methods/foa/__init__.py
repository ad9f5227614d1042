"""Prompt tokens by CMA-ES with the fitness of the forward alone, and features shifted back to the source's.

Niu et al., "Test-time model adaptation with only forward passes", ICML 2024, with the official code.  The fitness is
that of the code: the sum of the entropies, and squared differences of the features' statistics with a weight that
grows with the batch.  The paper writes lengths in place of squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttac.spec import Method, Option

KEPT = ("best.fitness", "best.scores", "best.prompts", "centres", "fitnesses", "number", "candidate")
"""Values that each candidate of a step changes."""


def judge(**view: str) -> tuple[Mapping[str, Any], ...]:
    """The words of a step behind the forward of the best prompts so far; `on` names other samples than the step's."""
    forward = {"run": "forward", "again": True, "feed": {"prompts": "candidate"}, **view}
    compare = {"run": "compare", "feed": {f"before.{name}": name for name in KEPT}}
    return {"run": "ask"}, {"repeat": "candidates", "do": (forward, compare)}, {"run": "tell"}


METHOD = Method(
    name="foa",
    title="prompt tokens by an evolution strategy and shifted features; no gradient, also for int8",
    paper="arXiv:2404.01650",
    needs="a vision transformer with a class token, batches, and calibration data; 28 forwards a step",
    adapts=False,
    check="ttac.methods.foa.prompts:check",
    refine="ttac.methods.foa.prompts:with_prompts",
    constants="ttac.methods.foa.prompts:first_prompts",
    oracle="tests/golden/make/official_foa.py",
    options=(
        Option("prompts", 3, "number of prompt tokens behind the class token", low=1, high=64),
        Option(
            "candidates", 27, "number of new candidates in a step, in addition to the best so far", low=4, high=1000
        ),
        Option(
            "discrepancy",
            0.0,
            "weight of the distance from the source's features in the fitness; 0 takes the published balance, 0.4 for "
            "12 layers of 768 features and 1000 classes",
            low=0.0,
        ),
        Option("shift", 1.0, "part of the features' distance from the source's mean that is taken back", low=0.0),
        Option("newest", 0.1, "weight of the newest batch in the mean of the stream's features", low=0.0, high=1.0),
        Option("step_size", 1.0, "first deviation of the candidates", low=1e-6),
        Option("seed", 2020, "of the first prompts and of the candidates", low=0),
    ),
    graphs={
        "ask": "ttac.methods.foa.evolution:ask",
        "compare": "ttac.methods.foa.evolution:compare",
        "tell": "ttac.methods.foa.evolution:tell",
    },
    program=(
        {"run": "forward"},
        *judge(),
        {"return": "answer"},
    ),
)
