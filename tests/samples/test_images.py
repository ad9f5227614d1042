"""Streams: arrays and folders of images as the batches a model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ttac.errors import UsageError
from ttac.runtime.records import TensorSpec
from ttac.samples.images import division, open_stream, preparation
from ttac.samples.streaming import run_stream

Image = pytest.importorskip("PIL.Image")

GREY = preparation(["N", 1, 4, 6], None)
IMAGENET = {"layout": "NCHW", "mean": [0.5, 0.25, 0.0], "std": [0.5, 0.25, 2.0], "range": [0, 1]}


def write(folder: Path, name: str, **arrays: np.ndarray) -> Path:
    file = folder / name
    np.savez(file, **arrays)
    return file


def test_floats_pass_and_the_last_batch_is_smaller(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((7, 1, 4, 6))
    stream = open_stream(write(tmp_path, "x.npz", x=x, labels=np.arange(7)), GREY)
    batches = list(stream.batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1] and batches[0].dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(batches), x.astype(np.float32))
    assert stream.prepared and stream.labels is not None and list(stream.labels) == list(range(7))


@pytest.mark.parametrize(
    ("count", "size", "smallest", "sizes"),
    [(7, 3, 2, [3, 2, 2]), (8, 4, 2, [4, 4]), (5, 4, 1, [4, 1]), (2, 4, 2, [2]), (9, 4, 3, [3, 3, 3])],
)
def test_no_batch_is_too_small(count: int, size: int, smallest: int, sizes: list[int]) -> None:
    assert division(count, size, smallest) == sizes


@pytest.mark.parametrize(("count", "size", "smallest"), [(1, 4, 2), (9, 4, 4), (5, 2, 2)])
def test_samples_that_cannot_be_divided(count: int, size: int, smallest: int) -> None:
    with pytest.raises(UsageError, match="samples cannot be divided into batches of"):
        division(count, size, smallest)


def test_the_first_array_counts_and_npy_is_read_too(tmp_path: Path) -> None:
    x = np.zeros((2, 4, 6), np.float32)
    assert open_stream(write(tmp_path, "x.npz", labels=np.zeros(2), images=x, other=x[::-1]), GREY).count == 2
    assert open_stream(tmp_path / "x.npz", GREY, "other").count == 2
    with pytest.raises(UsageError, match="did you mean `other`"):
        open_stream(tmp_path / "x.npz", GREY, "othr")
    np.save(tmp_path / "x.npy", x)
    assert open_stream(tmp_path / "x.npy", GREY).read(0, 2).shape == (2, 1, 4, 6)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_bytes_are_prepared_as_the_bundle_says(tmp_path: Path, axes: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), np.uint8)
    how = preparation(["N", 3, 4, 6], IMAGENET)
    stream = open_stream(write(tmp_path, "x.npz", x=pixels.transpose(axes)), how)
    mean, std = (np.array(IMAGENET[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    np.testing.assert_allclose(stream.read(0, 5), (pixels / 255 - mean) / std, rtol=1e-5, atol=1e-6)
    assert not stream.prepared and how.known and not GREY.known


def test_a_layout_with_channels_last(tmp_path: Path) -> None:
    pixels = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    how = preparation(["N", 4, 6, 3], {"layout": "NHWC", "range": [0, 255]})
    np.testing.assert_allclose(open_stream(write(tmp_path, "x.npz", x=pixels), how).read(0, 2), pixels, rtol=1e-6)


def test_a_folder_of_images_in_the_order_of_names(tmp_path: Path) -> None:
    for level, name in enumerate(("b/2.png", "a.png", "c.jpg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 12, 3), 40 * level, np.uint8)).save(tmp_path / name, quality=100)
    (tmp_path / "notes.txt").write_text("no image")
    stream = open_stream(tmp_path, preparation(["N", 3, 4, 6], None))
    assert stream.count == 3
    np.testing.assert_allclose(stream.read(0, 3)[:, 0, 0, 0] * 255, [40, 0, 80], atol=1)


def test_images_keep_their_proportions(tmp_path: Path) -> None:
    wide = np.zeros((4, 20), np.uint8)
    wide[:, 7:13] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert open_stream(tmp_path, GREY).read(0, 1).min() == 1.0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 1, 5, 6), np.float32)}, "samples have shape [1, 5, 6], the model takes [1, 4, 6]"),
        ({"x": np.zeros((2, 5, 6), np.uint8)}, "samples have shape [5, 6], the model takes [1, 4, 6]"),
        ({"x": np.zeros((2, 1, 4, 6), np.int64)}, "samples are `int64`"),
        ({"x": np.zeros((0, 1, 4, 6), np.float32)}, "the input holds no sample"),
        (
            {"x": np.zeros((2, 1, 4, 6), np.float32), "labels": np.zeros(3)},
            "there are 2 samples, but `labels` has shape [3]",
        ),
        ({"labels": np.zeros(3)}, "the archive holds no array"),
        ({"x": np.array([None])}, "cannot read the arrays: "),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_stream(write(tmp_path, "x.npz", **arrays), GREY)
    assert caught.value.problem.startswith(message) and caught.value.hint


@pytest.mark.parametrize("name", ["none.npz", "x.csv", "broken.npz", "broken.npy", "folder"])
def test_paths_that_are_no_stream(tmp_path: Path, name: str) -> None:
    for broken in ("x.csv", "broken.npz", "broken.npy"):
        (tmp_path / broken).write_text("1,2")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError):
        open_stream(tmp_path / name, GREY)


class Doubling:
    """A step gives twice its input; the second one is rejected."""

    def __init__(self) -> None:
        self.stats = {"steps": 0, "rejected": 0}
        self.outputs = [TensorSpec("logits", "float32", ("N", 6))]

    def step(self, x: np.ndarray) -> np.ndarray:
        self.stats["steps"] += 1
        self.stats["rejected"] += self.stats["steps"] == 2
        return 2 * x[:, 0, 0]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x[:, 0, 0]


def test_a_stream_is_summed_up(tmp_path: Path) -> None:
    x = np.random.default_rng(1).random((10, 1, 4, 6), np.float32)
    labels = x[:, 0, 0].argmax(-1)
    labels[:4] += 1
    stream = open_stream(write(tmp_path, "x.npz", x=x, labels=labels), GREY)
    moved: list[int] = []
    outcome = run_stream(Doubling(), stream, batch=4, moved=moved.append)
    assert moved == [4, 4, 2] and outcome.rejected == 1 and outcome.error == 0.4
    np.testing.assert_array_equal(outcome.outputs["logits"], 2 * x[:, 0, 0])
    assert set(outcome.summary()) == {
        "samples",
        "seconds",
        "ms_per_sample",
        "mean_entropy",
        "rejected_steps",
        "error",
    }
    np.testing.assert_array_equal(run_stream(Doubling(), stream, batch=4, adapt=False).outputs["logits"], x[:, 0, 0])
