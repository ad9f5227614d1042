"""The batch on another axis than the first, and files that are frozen at one sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.real_files import BODY, TIMES, images, plain, written
from ttac.cli import main
from ttac.errors import UnsupportedError, UsageError
from ttac.inspection import inspect_model

CTC = f"{TIMES} y = LogSoftmax <axis = 2> (h)"
SIGNATURE = "(float[N,3,8,12] x) => (float[12,N,5] y)"


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """A reader of text lines: [T, N, C], as CTC losses want it."""
    return written(tmp_path, SIGNATURE, CTC)


@pytest.mark.parametrize("method", ["source", "bn", "leantta", "tent", "sar", "eata"])
def test_outputs_with_the_batch_second(method: str, reader: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b.ttac"
    ttac.compile(reader, method=method, batch=4, output=bundle)
    adapter, x = ttac.load(bundle), images(4, 3, 8, 12)
    assert adapter.output.shape == (12, "N", 5)
    assert adapter.bundle.manifest["head"] == {
        "output": "y",
        "kind": "dense",
        "axis": 2,
        "values": "log_probabilities",
    }
    assert adapter.predict(x).shape == adapter.step(x).shape == (12, 4, 5)
    if method == "source":
        np.testing.assert_allclose(adapter.step(x), plain(reader, x)["y"], rtol=1e-5, atol=1e-6)


def test_the_loss_is_that_of_the_batch_first_file(reader: Path, tmp_path: Path) -> None:
    """The same network with a Transpose at its end adapts to the same numbers."""
    (tmp_path / "first").mkdir()
    nodes = f"{CTC} z = Transpose <perm = [1, 0, 2]> (y)"
    other = written(tmp_path / "first", "(float[N,3,8,12] x) => (float[N,12,5] z)", nodes)
    results = []
    for name, path in (("second", reader), ("first", other)):
        ttac.compile(path, method="tent", batch=4, output=tmp_path / f"{name}.ttac", settings={"lr": 0.1})
        adapter = ttac.load(tmp_path / f"{name}.ttac")
        results.append([adapter.step(images(4, 3, 8, 12, seed=seed)) for seed in range(3)])
    np.testing.assert_allclose(np.stack(results[0]), np.stack(results[1]).transpose(0, 2, 1, 3), rtol=1e-4, atol=1e-5)


def test_run_joins_samples_on_their_axis(reader: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b.ttac"
    ttac.compile(reader, method="tent", batch=4, output=bundle)
    x = images(10, 3, 8, 12)
    np.savez(tmp_path / "s.npz", images=x, labels=np.zeros((10, 12), np.int64))
    assert main(["run", str(bundle), str(tmp_path / "s.npz"), "--no-adapt", "-o", str(tmp_path / "o.npz")]) == 0
    with np.load(tmp_path / "o.npz") as arrays:
        assert arrays["logits"].shape == (12, 10, 5)


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    """A file whose mean over an axis of rows mixes samples: it works for one sample only."""
    nodes = f"""{BODY}
      q = Reshape (r, rows)
      a = ReduceMean <axes = [0], keepdims = 1> (q)
      y = MatMul (a, wf)
    """
    return written(tmp_path, "(float[1,3,8,8] x) => (float[1,5] y)", nodes, {"rows": np.array([64, 8])})


@pytest.mark.parametrize("method", ["source", "bn", "tent", "sar"])
def test_a_file_for_one_sample_compiles_for_one(method: str, frozen: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    bundle = tmp_path / "b.ttac"
    ttac.compile(frozen, method=method, batch=1, output=bundle, say=lines.append)
    assert any("takes one sample at a time" in line for line in lines)
    adapter, x = ttac.load(bundle), images(1)
    assert (adapter.batch, adapter.inputs[0].shape, adapter.output.shape) == (1, ("N", 3, 8, 8), ("N", 5))
    if method == "source":
        np.testing.assert_allclose(adapter.step(x), plain(frozen, x)["y"], rtol=1e-5, atol=1e-6)
    assert np.isfinite(adapter.step(x)).all() and adapter.stats["rejected"] == 0
    with pytest.raises(UsageError, match="planned for 1"):
        adapter.step(images(2))


def test_the_refusal_of_more_samples_names_the_option(frozen: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)the batch is fixed.*works for one sample at a time, `--batch 1`"):
        ttac.compile(frozen, method="source", batch=4, dry_run=True)
    rows = {row["method"]: (row["fits"], row["option"]) for row in inspect_model(frozen)["methods"]}
    assert rows["source"] == rows["bn"] == ("with --batch", "--batch 1")


def test_inspect_gives_the_verdicts_for_one_sample(frozen: Path) -> None:
    report = inspect_model(frozen)
    found = {row["method"]: (row["fits"], row["option"]) for row in report["methods"]}
    assert found["source"] == found["bn"] == ("with --batch", "--batch 1") and "1 batch" in report["norms"]
    assert {row["fits"] for row in inspect_model(frozen, batch=1)["methods"] if row["method"] == "bn"} == {"yes"}
