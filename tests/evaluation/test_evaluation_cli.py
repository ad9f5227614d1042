"""`ttac eval`: tables, files, exit codes and talk, on a hand-made bundle; one real compile marked slow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Run
from tests.support.source_models import saved, source
from tests.support.tiny_bundles import ema, read
from ttac import demo
from ttac.cli.evaluating import BETWEEN, LogProgress
from ttac.cli.running import _size
from ttac.evaluation import cells

X = np.random.default_rng(0).normal(0, 1, (20, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    """A bundle, samples with labels, and samples without."""
    cells._adapter.cache_clear()
    ema(tmp_path / "tiny.ttac")
    np.savez(tmp_path / "x.npz", clean=X, moved=X + 1, labels=np.arange(20) % 2)
    np.save(tmp_path / "bare.npy", X)
    return tmp_path


def test_the_table(run: Run) -> None:
    seen = run("eval", "tiny.ttac", "--data", "x.npz")
    lines = seen.out.splitlines()
    assert seen.code == 0 and lines[0] == "tiny, continual, shuffled, batch 4"
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "error, %",
        "clean",
        "moved",
        "mean",
        "calibration error, %",
        "entropy, nats",
        "drift from source, %",
        "ms per sample",
        "peak memory",
    ]
    clean, moved, mean = (float(line.split()[-1]) for line in lines[2:5])
    assert mean == pytest.approx((clean + moved) / 2, abs=0.1)
    again = run("eval", "tiny.ttac", "--data", "x.npz")
    assert again.out == seen.out and again.err == "1 of 1 cells are there already\n"


@pytest.mark.usefixtures("unmeasured")
def test_run_and_eval_take_the_same_batch(run: Run, tmp_path: Path) -> None:
    """A model is evaluated at the batch that `ttac compile` plans for and `ttac run` takes; so is its bundle."""
    model = str(saved(source(), tmp_path))
    assert run("compile", model, "--method", "source", "-o", "b.ttac").code == 0
    manifest = read(tmp_path / "b.ttac")
    planned, shape = manifest["batch"]["planned"], manifest["inputs"][0]["shape"][1:]
    np.save("images.npy", np.zeros((planned + 2, *shape), np.float32))
    assert _size(manifest, None) == planned
    for subject in (model, "b.ttac"):
        seen = run("eval", subject, "--methods", "source", "--data", "images.npy", "--json")
        assert {row["batch"] for row in json.loads(seen.out)["rows"]} == {planned}


def test_json_and_csv_hold_the_same_rows(run: Run, folder: Path) -> None:
    seen = run("eval", "tiny.ttac", "--data", "x.npz", "--csv", "rows.csv", "--json", "--protocol", "episodic,mixed")
    rows = json.loads(seen.out)["rows"]
    lines = (folder / "rows.csv").read_text().splitlines()
    assert len(rows) == len(lines) - 1 == 4 and {row["protocol"] for row in rows} == {"episodic", "mixed"}
    assert lines[0].split(",") == list(rows[0])


def test_a_note_says_that_labels_are_missing(run: Run) -> None:
    seen = run("eval", "tiny.ttac", "--data", "bare.npy")
    assert seen.code == 0 and seen.err.startswith("note: the samples have no labels; there are entropy and drift")
    assert seen.out.splitlines()[1].startswith("entropy, nats") and "error" not in seen.out


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["tiny.ttac"], 2, "the option `--data` is missing"),
        (["none.onnx", "--data", "x.npz"], 2, "there is no such model or bundle"),
        (["tiny.ttac", "--data", "none"], 2, "there is no such input"),
        (["tiny.ttac", "--data", "x.npz", "--methods", "tentt"], 2, "did you mean `tent`?"),
        (["tiny.ttac", "--data", "x.npz", "--corruptions", "snoww"], 2, "did you mean `snow`?"),
        (["tiny.ttac", "--data", "x.npz", "--protocol", "continuall"], 2, "did you mean `continual`?"),
        (["tiny.ttac", "--data", "x.npz", "--severity", "high"], 2, "`high` does not fit"),
        (["tiny.ttac", "--data", "x.npz", "--set", "lr"], 2, "a setting is written `name=value`"),
        (["tiny.ttac", "--data", "x.npz", "--html", "no/where.html"], 2, "the folder does not exist"),
    ],
)
def test_wrong_usage_is_refused(run: Run, arguments: list[str], code: int, error: str, folder: Path) -> None:
    seen = run("eval", *arguments)
    assert seen.code == code and error in seen.err and not seen.out
    assert not any((folder / "ttac-eval").glob("cells/*"))


def test_an_empty_folder(run: Run, folder: Path) -> None:
    (folder / "none").mkdir()
    seen = run("eval", "tiny.ttac", "--data", "none")
    assert seen.code == 2 and "the folder holds no image" in seen.err


def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ttac.evaluation import study

    def interrupted(job: object, moved: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(study, "run_cell", interrupted)
        seen = run("eval", "tiny.ttac", "--data", "x.npz")
    assert seen.code == 130 and "the same command goes on from there" in seen.err
    assert run("eval", "tiny.ttac", "--data", "x.npz").code == 0


def test_progress_without_a_terminal_is_a_line_now_and_then() -> None:
    told, now = list[str](), [0.0]
    lines = LogProgress(told.append, clock=lambda: now[0])
    lines.expect("evaluating", 100)
    for _ in range(4):
        now[0] += 0.6 * BETWEEN
        lines.moved(10)
    assert told == ["evaluating: 20 of 100, about 48 s left", "evaluating: 40 of 100, about 36 s left"]


@pytest.mark.slow
def test_models_are_compiled_and_misfits_are_reported(run: Run, folder: Path) -> None:
    """`bn` has nothing to adapt in a net with group norms: the others run, and the command succeeds."""
    model, stream = (str(demo.file(name)) for name in ("fashion_resnet_gn.onnx", "fashion_stream.npz"))
    options = ["--methods", "source,bn", "--arrays", "clean,snow", "--samples", "64", "--json"]
    seen = run("eval", model, "--data", stream, *options)
    report = json.loads(seen.out)
    assert seen.code == 0 and {row["method"] for row in report["rows"]} == {"source"}
    assert [(each["method"], each["exit_code"]) for each in report["missing"]] == [("bn", 3)]
    assert re.search(r"not run: `bn` on `fashion_resnet_gn`: `bn` adapts", seen.err)
    errors = {row["shift"]: row["error"] for row in report["rows"]}
    assert errors["clean"] < 0.2 < errors["snow"] and all(row["peak_bytes"] > 0 for row in report["rows"])


@pytest.mark.slow
def test_corruptions_of_a_real_net(run: Run) -> None:
    pytest.importorskip("imagecorruptions")
    model, stream = (str(demo.file(name)) for name in ("fashion_resnet_bn_unfolded.onnx", "fashion_stream.npz"))
    asked = ["--methods", "source", "--corruptions", "contrast,fog", "--severity", "1,5", "--samples", "64", "--json"]
    seen = run("eval", model, "--data", stream, *asked)
    errors = {(row["shift"], row["severity"]): row["error"] for row in json.loads(seen.out)["rows"]}
    assert len(errors) == 4 and errors["contrast", 5] > 0.5 and errors["contrast", 5] >= errors["contrast", 1]
