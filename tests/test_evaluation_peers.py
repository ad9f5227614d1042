"""ttac's methods make the same errors as their re-statements in PyTorch, where a rate ten times the default moves them."""

from __future__ import annotations

import pytest

from ttac import methods

NAMED = [method for method in ("source", "bn", "tent", "eata", "sar", "surgeon") if method in methods.names()]
SETTINGS = {"lr": 0.01, "select": "topk"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["BatchNorm", "GroupNorm", "ViT"])
def test_the_errors_agree_within_three_tenths_of_a_point(kind: str) -> None:
    pytest.importorskip("torch")
    from benchmarks.agreement import ANY_NORM, WITHIN, errors

    named = [method for method in NAMED if kind == "BatchNorm" or method in ANY_NORM]
    settings = SETTINGS if "surgeon" in named else {"lr": SETTINGS["lr"]}
    found = errors(kind, named, ["gaussian_noise", "snow"], 384 if kind == "BatchNorm" else 192, settings)
    assert len(found) == len(named) >= 4
    for method, (ours, theirs) in found.items():
        assert abs(ours - theirs) <= WITHIN, method
    assert abs(found["tent"][0] - found["source"][0]) > 0.5, "the method moved"
