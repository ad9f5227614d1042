"""Every form of samples, with and without labels, and refused data."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttac.errors import UsageError
from ttac.evaluation.dataset import open_dataset, subset
from ttac.samples.images import Preparation

GREY = Preparation(sample=(1, 4, 6))
RGB = Preparation(sample=(3, 4, 6))
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6), np.uint8)
ALL = np.arange(5)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of two classes, one of them in colour and of another size."""
    for name, number in (("cat/b.png", 0), ("cat/a.png", 1), ("ant/c.png", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(IMAGES[number]).save(tmp_path / name)
    Image.fromarray(IMAGES[2]).convert("RGB").resize((12, 8)).save(tmp_path / "ant/c.png")
    return tmp_path


def test_a_folder_of_classes(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert dataset.labels is not None and dataset.labels.tolist() == [0, 1, 1] and dataset.count == 3
    found = dataset.read("clean", np.array([1, 2]), GREY)
    np.testing.assert_array_equal(found, IMAGES[[1, 0], None])
    assert dataset.read("clean", np.array([0]), RGB).shape == (1, 3, 4, 6)


def test_classes_with_numbers_go_by_value(tmp_path: Path) -> None:
    for name in ("10", "9"):
        (tmp_path / name).mkdir()
        Image.fromarray(IMAGES[0]).save(tmp_path / name / "x.png")
    labels = open_dataset(tmp_path).labels
    assert labels is not None and labels.tolist() == [1, 0]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0]).save(tmp_path / "x.png")
    assert open_dataset(tmp_path).labels is None


def test_the_digest_is_that_of_the_content(folder: Path) -> None:
    before = open_dataset(folder).digest
    assert open_dataset(folder).digest == before
    (folder / "ant/c.png").rename(folder / "cat/c.png")
    assert open_dataset(folder).digest != before


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(packed: bool, tmp_path: Path) -> None:
    labels = np.array([3, 1, 2, 0, 9], np.uint8)
    for name, array in (("images-idx3", IMAGES), ("labels-idx1", labels)):
        content = idx(array)
        path = tmp_path / f"t10k-{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
    for place in (tmp_path, next(tmp_path.glob("*idx3*"))):
        dataset = open_dataset(place)
        assert dataset.labels is not None and dataset.labels.tolist() == labels.tolist()
        np.testing.assert_array_equal(dataset.read("clean", ALL, GREY), IMAGES[:, None])
    assert dataset.read("clean", ALL, Preparation(sample=(3, 8, 8))).shape == (5, 3, 8, 8)


@pytest.mark.parametrize("content", [b"", b"\0\0\x0d\x01", idx(IMAGES)[:-1], idx(IMAGES) + b"x", b"\0\0\x08\x02ab"])
def test_damaged_idx_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read the IDX file"):
        open_dataset(tmp_path)


def test_an_archive_has_a_shift_in_each_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", fog=IMAGES, clean=IMAGES[::-1], labels=ALL, about="made up")
    dataset = open_dataset(tmp_path / "x.npz")
    assert dataset.variants == ("clean", "fog") and dataset.labels is not None
    np.testing.assert_array_equal(dataset.read("fog", ALL, GREY), IMAGES[:, None])


def test_arrays_and_iterators() -> None:
    x, y = np.zeros((7, 3), np.float32), np.arange(7)
    how = Preparation(sample=(3,))
    digests = set()
    for data in ((x, y), {"x": x, "labels": y}, iter([(x[:4], y[:4]), (x[4:], y[4:])])):
        dataset = open_dataset(data)
        assert dataset.count == 7 and dataset.labels is not None and dataset.labels.tolist() == list(range(7))
        assert dataset.read(dataset.variants[0], np.array([6]), how).shape == (1, 3)
        digests.add(dataset.digest)
    assert len(digests) == 2, "the name of an array is part of the digest"
    assert open_dataset(iter([x])).labels is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (iter([]), "no batch"),
        (iter([(np.zeros((2, 3)), np.zeros(2, int)), np.zeros((2, 3))]), "some batches have labels"),
        (iter([np.zeros((2, 3)), np.zeros((2, 4))]), "do not fit together"),
        ((np.zeros((2, 3), np.float32), np.zeros(3, int)), "there are 2 samples, but the labels"),
        ((np.zeros((2, 3), np.float32), np.array([0, -1])), "there are 2 samples, but the labels"),
        ((np.zeros((2, 3), np.float32), np.array([0.5, 1])), "there are 2 samples, but the labels"),
        ({"a": np.zeros((2, 3), np.float32), "b": np.zeros((3, 3), np.float32)}, "array `b` has 3 samples"),
        ({"a": np.zeros((0, 3), np.float32)}, "holds no sample"),
        ({}, "no array"),
        ({"a": np.zeros((2, 3), np.int64)}, "is `int64`"),
        (5, "cannot be read from `int`"),
        (Path("none.npz"), "no such input"),
    ],
)
def test_wrong_data_are_refused(data: object, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        open_dataset(data)


def test_files_that_are_no_samples(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the folder holds no image"):
        open_dataset(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(UsageError, match="cannot read the arrays"):
        open_dataset(tmp_path / "x.npz")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot read the arrays"):
        open_dataset(tmp_path / "objects.npy")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(UsageError, match="no form of input"):
        open_dataset(tmp_path / "x.txt")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/x.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match="cannot read the image"):
        open_dataset(tmp_path / "images").read("clean", np.array([0]), GREY)


def test_images_of_another_size_in_an_array() -> None:
    with pytest.raises(UsageError, match=r"samples have shape \[4, 6\], the model takes \[1, 28, 28\]"):
        open_dataset(IMAGES).read("clean", ALL, Preparation(sample=(1, 28, 28)))


def test_a_subset_is_the_same_every_time() -> None:
    chosen = subset(100, 10)
    assert len(set(chosen.tolist())) == 10 and (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, subset(100, 10))
    assert len(subset(100, None)) == len(subset(100, 200)) == 100
