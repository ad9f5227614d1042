"""Published statistics of batch norms whose value and gradient differ, against the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.official_batch_norms import stream, worst
from tests.support.surgeon_case import BATCH, model
from tests.support.tiny_bundles import read
from tests.support.whole_models import compiled
from ttac import verification
from ttac.errors import VerificationError


@pytest.mark.parametrize("choices", [{}, {"memory_budget": "1GiB"}], ids=["no budget", "budget"])
def test_delta_equals_the_published_code(choices: dict[str, str], tmp_path: Path) -> None:
    """Six steps: statistics, scale and bias of every norm, and logits."""
    apart = worst("delta", tmp_path, **choices)
    assert len(apart) == 4 * 7 + 1 and max(apart.values()) < 1e-4, apart


def test_the_derivative_takes_stopped_values_as_constants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stopped values of another batch, the finite difference is another function's."""
    settings = {"statistics": "renorm"}
    bundle = compiled(model("batch"), tmp_path, method="tent", batch=BATCH, settings=settings)
    assert read(bundle)["verified"]["derivative"] < 5e-3
    plain = verification.detached_values

    def doubled(*of: object) -> dict[str, object]:
        return {name: 2 * value for name, value in plain(*of).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(verification, "detached_values", doubled)
    with pytest.raises(VerificationError):
        compiled(model("batch"), tmp_path, method="tent", batch=BATCH, settings=settings)


def test_the_first_batch_sets_the_statistics(tmp_path: Path) -> None:
    """The first step is that of batch statistics; after a reset, the next step is the first."""
    settings = {"statistics": "renorm"}
    bundles = [compiled(model("batch"), tmp_path, method="bn", batch=BATCH, settings=s) for s in (settings, {})]
    renorm, batch = (ttac.load(bundle, threads=1) for bundle in bundles)
    x, y = stream()[:2]
    np.testing.assert_allclose(renorm.step(x), batch.step(x), rtol=0, atol=1e-5)
    assert np.abs(renorm.step(y) - batch.step(y)).max() > 1e-3
    renorm.reset()
    np.testing.assert_allclose(renorm.step(y), batch.step(y), rtol=0, atol=1e-5)
