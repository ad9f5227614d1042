"""Padding enters no figure of `ttac run` and `ttac eval`: neither that of tokens nor of a last batch with few samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.conftest import Run
from tests.passes.differentiate.test_several_losses import entropies, token_model
from tests.support.whole_models import compiled, samples


@pytest.mark.parametrize("name", ["attention_mask", "key_padding_mask"])
def test_padding_of_tokens_enters_no_figure(name: str, run: Run, tmp_path: Path) -> None:
    """Ten samples in batches of four: the last batch holds two."""
    bundle = compiled(token_model(name, tmp_path), tmp_path, batch=4, method="source")
    filled = np.arange(64) < np.arange(5, 65, 6)[:, None]
    feeds = {"x": samples((3, 8, 8), 10), name: (~filled if "padding" in name else filled).astype(np.int64)}
    adapter = ttac.load(bundle, threads=1)
    y = np.concatenate([adapter.step({key: a[i : i + 4] for key, a in feeds.items()}) for i in (0, 4, 8)])
    labels = y.argmax(2)
    labels[:, ::2] = (labels[:, ::2] + 1) % 6
    np.savez(tmp_path / "x.npz", **feeds, labels=labels)  # type: ignore[arg-type]
    each, wrong = entropies(y, 2), np.broadcast_to(np.arange(64) % 2 == 0, filled.shape)
    ran = json.loads(run("run", str(bundle), "x.npz", "--json").out)
    assert ran["mean_entropy"] == pytest.approx(each[filled].mean(), rel=1e-4)
    assert ran["error"] == pytest.approx(wrong[filled].mean(), abs=1e-6)
    seen = run("eval", str(bundle), "--data", "x.npz", "--json")
    assert seen.code == 0, seen.err
    (row,) = json.loads(seen.out)["rows"]
    of_samples = [each[i][filled[i]].mean() for i in range(10)]
    assert row["entropy"] == pytest.approx(np.mean(of_samples), rel=1e-4)
    assert row["error"] == pytest.approx(wrong[filled].mean(), abs=1e-6)
