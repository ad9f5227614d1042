"""Published statistics of batch norms whose value and gradient differ, against the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.official_batch_norms import official, stream, worst
from tests.support.surgeon_case import BATCH, model
from tests.support.tiny_bundles import read
from tests.support.whole_models import compiled, refused, state_of
from ttac import verification
from ttac.errors import UnsupportedError, VerificationError


@pytest.mark.parametrize("choices", [{}, {"memory_budget": "1GiB"}], ids=["no budget", "budget"])
def test_delta_equals_the_published_code(choices: dict[str, str], tmp_path: Path) -> None:
    """Six steps: statistics, scale and bias of every norm, and logits."""
    apart = worst("delta", tmp_path, **choices)
    assert len(apart) == 4 * 7 + 1 and max(apart.values()) < 1e-4, apart


@pytest.mark.parametrize("choices", [{}, {"memory_budget": "1GiB"}], ids=["no budget", "budget"])
def test_mecta_equals_the_published_code(choices: dict[str, str], tmp_path: Path) -> None:
    """Steps with no, some and all norms active: the same norms learn, also their momentum."""
    active = official("mecta")["active"]
    assert {0.0, 1.0} < set(active.mean(1).tolist())
    apart = worst("mecta", tmp_path, **choices)
    assert len(apart) == 4 * 7 + 2 and max(apart.values()) < 1e-4, apart


def test_mecta_drops_the_channels_of_the_published_code(tmp_path: Path) -> None:
    """Seven of ten channels of every norm's input, drawn anew in each step."""
    apart = worst("mecta_channels", tmp_path)
    assert len(apart) == 4 * 7 + 2 and max(apart.values()) < 1e-4, apart
    dropped, kept = official("mecta_channels"), official("mecta")
    assert np.abs(dropped["1.scale"] - kept["1.scale"]).max() > 1e-3


def test_roid_equals_the_published_code(tmp_path: Path) -> None:
    """The distorted view has the statistics of the kept samples."""
    apart = worst("roid", tmp_path)
    assert len(apart) == 2 * 7 + 2 and max(apart.values()) < 1e-4, apart
    assert np.abs(official("roid")["1.bias"]).max() > 1e-3


def test_a_stream_without_drift_changes_no_parameter(tmp_path: Path) -> None:
    bundle = compiled(
        model("batch"), tmp_path, method="mecta", batch=BATCH, settings={"least_drift": 1.0, "guard": "off"}
    )
    adapter = ttac.load(bundle, threads=1)
    before = state_of(adapter)
    adapter.step(stream()[4])
    after = state_of(adapter)
    assert adapter.stats["active"] == 0.0 and np.abs(after["1.mean"] - before["1.mean"]).max() > 0
    for name in before:
        if name.endswith((".scale", ".bias")):
            np.testing.assert_array_equal(after[name], before[name])


def test_other_norms_are_refused() -> None:
    message = refused(UnsupportedError, model("group"), method="mecta")
    assert "group norm" in message and "`--method eata`" in message


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
