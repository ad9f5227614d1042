"""ttac's methods and the same methods in PyTorch make equal errors, on nets with batch, group and layer norms."""

from __future__ import annotations

import pytest

from ttac import methods

SHIFTS = ["gaussian_noise", "snow"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["BatchNorm", "GroupNorm", "ViT"])
def test_the_errors_agree_within_three_tenths_of_a_point(kind: str) -> None:
    """At ten times the default rate, so that the methods change the errors."""
    pytest.importorskip("torch")
    from benchmarks.agreement import ANY_NORM, WITHIN, errors

    named = ["bn", *ANY_NORM] if kind == "BatchNorm" else list(ANY_NORM)
    found = errors(kind, named, SHIFTS, 192, {"lr": 0.01})
    assert len(found) == len(named)
    for method, (ours, theirs) in found.items():
        assert abs(ours - theirs) <= WITHIN, method
    assert abs(found["tent"][0] - found["source"][0]) > 0.5, "the method moved"


@pytest.mark.slow
@pytest.mark.skipif("surgeon" not in methods.names(), reason="needs the method")
def test_surgeon_agrees_with_the_paper_s_gradient() -> None:
    """At the defaults: values that ttac drops are also missing in the input's gradient, which the paper keeps exact."""
    pytest.importorskip("torch")
    from benchmarks.agreement import WITHIN, errors

    ((ours, theirs),) = errors("BatchNorm", ["surgeon"], SHIFTS, 384).values()
    assert abs(ours - theirs) <= WITHIN
