"""`ttac run` on a folder with a sub-folder for each class: the error, and the names of the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Run
from tests.support.source_models import saved, source
from tests.support.whole_models import compiled

CLASSES = 5


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A classifier of images [3, 8, 8]."""
    return compiled(saved(source(), tmp_path), tmp_path, method="source", batch=4)


def pictures(folder: Path, classes: int, each: int = 3) -> None:
    """Random images in sub-folders `0`, `1` and so on."""
    rng = np.random.default_rng(0)
    for number in range(classes):
        (folder / str(number)).mkdir(parents=True)
        for k in range(each):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / str(number) / f"{k}.png")


def test_class_folders_give_the_error_and_names(run: Run, bundle: Path, tmp_path: Path) -> None:
    classes = json.loads((bundle / "manifest.json").read_text())["outputs"][0]["shape"][1]
    pictures(tmp_path / "images", classes)
    report = json.loads(run("run", str(bundle), "images", "-o", "out.npz", "--json").out)
    with np.load("out.npz") as arrays:
        logits, files = arrays["logits"], list(arrays["files"])
    assert files == sorted(f"{number}/{k}.png" for number in range(classes) for k in range(3))
    right = logits.argmax(axis=1) == [int(name.split("/")[0]) for name in files]
    assert report["error"] == pytest.approx(1 - right.mean(), abs=1e-6)


def test_other_sub_folders_give_no_error(run: Run, bundle: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "images", 2)
    seen = run("run", str(bundle), "images", "--json")
    assert "error" not in json.loads(seen.out) and "the folder has 2 sub-folders, the model" in seen.err


def test_a_flat_folder_has_names_but_no_error(run: Run, bundle: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "images", 1)
    seen = run("run", str(bundle), "images/0", "-o", "out.npz", "--json")
    assert "error" not in json.loads(seen.out) and "sub-folders" not in seen.err
    with np.load("out.npz") as arrays:
        assert list(arrays["files"]) == ["0.png", "1.png", "2.png"]
