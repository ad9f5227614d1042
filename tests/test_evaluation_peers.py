"""ttac's methods make the same errors as their re-statements in PyTorch, where a rate ten times the default moves them."""

from __future__ import annotations

import pytest

from ttac import methods


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_errors_agree_within_three_tenths_of_a_point() -> None:
    pytest.importorskip("torch")
    from benchmarks.agreement import METHODS, WITHIN, errors

    named = [method for method in METHODS if method in methods.names()]
    found = errors(named, ["gaussian_noise", "snow"], 384, {"lr": 0.01, "select": "topk"})
    assert len(found) == len(named) >= 5
    for method, (ours, theirs) in found.items():
        assert abs(ours - theirs) <= WITHIN, method
    assert found["tent"][0] < found["bn"][0] - 0.5 < found["source"][0], "the methods moved"
