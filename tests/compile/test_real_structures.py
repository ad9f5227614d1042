"""Structures of files that people install, with drawn weights: they compile, and `source` equals onnxruntime."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.real_file_comparison import RealFile
from benchmarks.real_file_table import ROWS
from benchmarks.real_files import FILES, outcome
from tests.support.structures import restore

HERE = Path(__file__).resolve().parents[1] / "real"
STRUCTURES = {file.digest: file for file in FILES if (HERE / f"{file.digest}.onnx.gz").exists()}
TABLE = json.loads(ROWS.read_text(encoding="utf-8"))
QUICK = {"fe2d2eb49c5f", "088c815a10b5", "7ed98ddbad84", "2365c42d3623"}
"""A classifier of bytes, a detector of seizures, one of voices, a writer of names: each takes a few seconds."""

ROUNDED = "verification failed: logits off differ by [0-9.]+e-04, allowed 1e-04"
"""A refusal that drawn weights may end in: they amplify rounding errors more than trained weights."""

FLAT = {("48fc40f24f6d", "tent")}
"""With drawn weights the loss of this reader is flat, and finite differences of it are rounding errors; trained weights
pass."""


def test_the_structures_are_many_and_small() -> None:
    assert len(STRUCTURES) >= 25 and QUICK <= set(STRUCTURES)
    assert len({file.task for file in STRUCTURES.values()}) >= 10
    assert sum(path.stat().st_size for path in HERE.iterdir()) < 1 << 18
    listed = (HERE / "README.md").read_text(encoding="utf-8")
    assert all(f"{file.digest}.onnx.gz | {file.package} | {file.path} |" in listed for file in STRUCTURES.values())


def cases() -> list[object]:
    found = []
    for digest in STRUCTURES:
        for method in ("source", "bn", "tent") if digest in QUICK else ("source", "tent"):
            if TABLE[digest][method].startswith("ok") and (digest, method) not in FLAT:
                marks = [] if digest in QUICK else [pytest.mark.slow]
                found.append(pytest.param(STRUCTURES[digest], method, marks=marks, id=f"{digest}-{method}"))
    return found


@pytest.mark.parametrize(("file", "method"), cases())
def test_a_structure_compiles(file: RealFile, method: str, tmp_path: Path) -> None:
    model = restore(HERE / f"{file.digest}.onnx.gz", tmp_path / "model.onnx")
    found = outcome(file, model, method, tmp_path)
    assert re.fullmatch(
        rf"ok(, equal|, off [0-9.]+e-05( \(from float64: .*\))?|, `hn` not comparable)?|{ROUNDED}", found
    ), found
