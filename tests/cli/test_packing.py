"""Commands on a bundle in one file: they print and write the same as for the folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import ttac
from tests.support.whole_models import MODELS
from ttac.cli import main
from ttac.cli.viewing import graph_file
from ttac.runtime.bundle import Bundle, pack
from ttac.staging import as_folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder, and the file of the same bundle."""
    place = tmp_path_factory.mktemp("packed")
    ttac.compile(MODELS["resnet"], method="tent", output=place / "folder.ttac", batch=4)
    pack(place / "folder.ttac", place / "one.ttac")
    return place / "folder.ttac", place / "one.ttac"


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The standard output of a command that succeeds."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_the_command_writes_the_file(
    bundles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "pack", bundles[0], "-o", tmp_path / "new.ttac").strip() == str(tmp_path / "new.ttac")
    assert (tmp_path / "new.ttac").read_bytes() == bundles[1].read_bytes()


def test_inspect_reads_the_file(bundles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder, one = (said(capsys, "inspect", bundle, "--plan") for bundle in bundles)
    assert folder.replace("folder.ttac", "one.ttac").split() == one.split()
    assert said(capsys, "inspect", *bundles, "--json").count('"changes": []') == 1


def test_run_and_bake_read_the_file(
    bundles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = (8, *Bundle.read(bundles[1]).manifest["inputs"][0]["shape"][1:])
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    for bundle in bundles:
        state = tmp_path / f"{bundle.stem}.state"
        said(capsys, "run", bundle, tmp_path / "x.npz", "--save-state", state)
        said(capsys, "bake", bundle, "--state", state, "-o", tmp_path / f"{bundle.stem}.onnx", "--force")
    folder, one = (onnx.load(str(tmp_path / f"{bundle.stem}.onnx")) for bundle in bundles)
    assert folder.SerializeToString(deterministic=True) == one.SerializeToString(deterministic=True)


def test_bake_keeps_the_bundle(bundles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bake", str(bundles[1]), "--state", "state", "-o", str(bundles[1])]) == 2
    assert "the output lies in the bundle" in capsys.readouterr().err


def test_eval_and_bench_read_the_file(
    bundles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = (8, *Bundle.read(bundles[1]).manifest["inputs"][0]["shape"][1:])
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    rows = []
    for bundle in bundles:
        output = tmp_path / bundle.stem
        text = said(capsys, "eval", bundle, "--data", tmp_path / "x.npz", "-o", output, "--json")
        rows += [
            {key: value for key, value in row.items() if key != "ms_per_sample"} for row in json.loads(text)["rows"]
        ]
    assert len(rows) == 2 and {**rows[0], "model": "", "method": ""} == {**rows[1], "model": "", "method": ""}
    (row,) = json.loads(said(capsys, "bench", bundles[1], "--pairs", "7", "--threads", "1", "--json"))["rows"]
    assert row["ratio"] > 0


def test_doctor_runs_the_file(bundles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "forward" in said(capsys, "doctor", bundles[1])


def test_view_finds_the_graphs_of_the_file(bundles: tuple[Path, Path]) -> None:
    with as_folder(bundles[1]) as folder:
        assert graph_file(folder, "backward-1" if (folder / "backward-1.onnx").exists() else "backward").is_file()
        assert folder.name == "one.ttac"
    assert not folder.exists()
