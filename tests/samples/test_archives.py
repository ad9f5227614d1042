"""Archives and images that inflate far beyond their size are refused before they are inflated."""

from __future__ import annotations

import io
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttac.errors import UsageError
from ttac.evaluation.dataset import open_dataset
from ttac.samples import archives
from ttac.samples.archives import refuse_large, stated_arrays
from ttac.samples.images import open_stream, preparation, read_image

HOW = preparation(["N", 3, 8, 8], None)


def bomb(path: Path, shape: tuple[int, ...], kept: int = 1 << 20) -> Path:
    """An `.npz` whose header states `shape`, with `kept` bytes of zeros behind the header."""
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(kept))
    return path


@pytest.mark.parametrize("reader", [lambda path: open_stream(path, HOW), open_dataset], ids=["run", "eval"])
@pytest.mark.parametrize("shape", [(1 << 28, 3, 8, 8), (1 << 34,), (1 << 50, 1 << 50)])
def test_an_archive_that_states_too_much_is_refused(
    shape: tuple[int, ...], reader: Callable[[Path], object], tmp_path: Path
) -> None:
    path = bomb(tmp_path / "bomb.npz", shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match="more than half of this machine's memory"):
        reader(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18, "KiB"


def test_an_array_that_inflates_a_hundredfold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "UNPACKED", 1 << 20)
    refuse_large(bomb(tmp_path / "small.npz", (1 << 18,)))
    with pytest.raises(UsageError, match="more than 100 times its size in the file"):
        refuse_large(bomb(tmp_path / "bomb.npz", (1 << 19,), 1 << 21))
    np.savez_compressed(tmp_path / "noise.npz", x=np.random.default_rng(0).random((1 << 19,), np.float32))
    refuse_large(tmp_path / "noise.npz")


def test_names_and_shapes_are_read_from_headers(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.zeros((4, 3, 8, 8), np.float32), labels=np.arange(4))
    found = stated_arrays(path)
    assert found["x"] == ((4, 3, 8, 8), np.dtype("float32")) and found["x"].bytes == 4 * 3 * 64 * 4
    assert list(found) == ["x", "labels"]


def test_a_machine_of_unknown_memory_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "physical_memory", lambda: 0)
    monkeypatch.setattr(archives, "UNPACKED", 1 << 60)
    refuse_large(bomb(tmp_path / "bomb.npz", (1 << 34,)))


def test_an_image_that_states_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (64, 64)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 63)
    with pytest.raises(UsageError, match="more pixels than are safe"):
        read_image(path, (1, 8, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UsageError, match="more pixels than are safe"):
        read_image(path, (1, 8, 8))
