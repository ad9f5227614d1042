"""`ttac watch`: images that arrive in a folder or a video, figures after each step, and metrics on loopback."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ttac
from tests.support.whole_models import MODELS
from ttac.cli import main, watching
from ttac.errors import RuntimeMissingError, UsageError
from ttac.reports.live_figures import LiveFigures
from ttac.runtime.bundle import Bundle
from ttac.samples import live
from ttac.samples.live import live_batches, live_images
from ttac.samples.predictions import CLASSES

SIZE = (3, 8, 8)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "POLL", 0.01)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("watch") / "net.ttac"
    ttac.compile(MODELS["resnet"], method="tent", output=place, batch=4)
    return place


def save(folder: Path, number: int, side: int = 8) -> None:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{number:03}.png")


def taken(images: Iterator[Any], count: int) -> list[np.ndarray]:
    """The first images, without the pauses."""
    found: list[np.ndarray] = []
    for image in images:
        found += [] if image is None else [image]
        if len(found) == count:
            break
    return found


def test_a_folder_gives_new_images_in_order(tmp_path: Path) -> None:
    for number in (2, 1):
        save(tmp_path, number)
    images = live_images(str(tmp_path), SIZE)
    first = taken(images, 2)
    save(tmp_path, 0)
    (third,) = taken(images, 1)
    for number, image in zip((1, 2, 0), [*first, third], strict=True):
        with Image.open(tmp_path / f"{number:03}.png") as stored:
            np.testing.assert_array_equal(image, np.asarray(stored).transpose(2, 0, 1))


def test_images_of_sub_folders_arrive_too(tmp_path: Path) -> None:
    """As `ttac run` takes them: a camera may write a folder for each day."""
    images = live_images(str(tmp_path), SIZE)
    assert next(images) is None
    (tmp_path / "monday").mkdir()
    save(tmp_path / "monday", 0)
    assert len(taken(images, 1)) == 1


def test_a_file_that_grows_waits(tmp_path: Path) -> None:
    save(tmp_path, 0)
    data = (tmp_path / "000.png").read_bytes()
    (tmp_path / "000.png").write_bytes(data[:20])
    images = live_images(str(tmp_path), SIZE)
    assert next(images) is None
    (tmp_path / "000.png").write_bytes(data)
    assert next(images) is None and next(images) is not None


def test_a_file_that_is_no_image_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "000-a.png").write_bytes(b"no image")
    save(tmp_path, 0)
    said: list[str] = []
    assert len(taken(live_images(str(tmp_path), SIZE, said.append), 1)) == 1
    assert len(said) == 1 and "`000-a.png` is left out: cannot read the image" in said[0]


def test_batches_end_with_a_smaller_one() -> None:
    images = [np.full(SIZE, number, np.uint8) for number in range(7)]
    assert [len(batch) for batch in live_batches(iter(images), 3, 1)] == [3, 3, 1]
    assert [len(batch) for batch in live_batches(iter(images), 3, 2)] == [3, 3]


def test_a_quiet_source_ends() -> None:
    endless = iter(lambda: None, 0)
    start = time.monotonic()
    assert list(live_batches(endless, 3, 1, idle=0.1)) == []
    assert time.monotonic() - start < 5


def test_other_sources_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no such source"):
        live_images(str(tmp_path / "absent"), SIZE)
    monkeypatch.setattr(live, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissingError, match="PyAV or OpenCV"):
        live_images("camera:0", SIZE)


@pytest.mark.parametrize("reader", live.READERS)
def test_a_video_gives_its_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    av = pytest.importorskip("av")
    pytest.importorskip(reader)
    with av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=5, width=16, height=16, pix_fmt="yuvj420p")
        for level in (20, 120, 220):
            frame = av.VideoFrame.from_image(Image.new("RGB", (16, 16), (level, level, level)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    monkeypatch.setattr(live, "find_spec", lambda name: name == reader or None)
    frames = list(live_images(str(tmp_path / "v.avi"), SIZE))
    assert [frame.shape for frame in frames if frame is not None] == [SIZE] * 3
    assert [round(float(frame.mean()), -1) for frame in frames if frame is not None] == [20, 120, 220]


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "v.mp4").write_bytes(b"no video")
    with pytest.raises(UsageError, match="cannot read the video"):
        list(live_images(str(tmp_path / "v.mp4"), SIZE))


def test_the_command_prints_a_line_for_each_step(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        save(tmp_path, number, 40)
    state = tmp_path / "state"
    arguments = ["watch", str(bundle), str(tmp_path), "--idle", "0.3", "--json", "--save-state", str(state)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [(line["step"], line["samples"]) for line in lines] == [(1, 4), (2, 6)]
    assert all(line["milliseconds"] > 0 and line["entropy"] > 0 for line in lines)
    assert sum(lines[1]["classes"].values()) == pytest.approx(1, abs=1e-3)
    assert "6 images, 2 steps" in captured.err
    ttac.load(bundle).restore(state)
    assert main([*arguments[:5], "--state", str(state), "--no-adapt"]) == 0
    assert capsys.readouterr().out.startswith("step 1: ")


def test_the_figures_are_those_of_the_outputs() -> None:
    figures = LiveFigures(head=CLASSES)
    logits = np.array([[9, 0, 0], [0, 0, 9], [0, 0, 9.0]], np.float32)
    assert figures.add(logits, 3, 2.5, {"held_in_a_row": 1.0, "guard_resets": 2.0, "drift": 0.5}) == [0, 2, 2]
    assert figures.most_common(1) == [(2, pytest.approx(2 / 3))] and figures.entropy == pytest.approx(
        0.002468, rel=1e-3
    )
    assert figures.guard == "holds, 1 in a row; 1 of 1 batches held, 2 resets"
    figures.add(logits, 3, 2.5, {"held_in_a_row": 0.0, "guard_resets": 2.0})
    assert figures.guard.startswith("learns; 1 of 2")
    assert LiveFigures(head=None).guard == "off"


def test_the_screen_has_a_bar_for_each_class() -> None:
    from rich.console import Console

    figures = LiveFigures(head=CLASSES)
    figures.add(np.eye(4, dtype=np.float32)[[0, 0, 0, 3]], 4, 1.0, {})
    console = Console(width=90, record=True, file=io.StringIO())
    console.print(watching.screen(figures))
    text = console.export_text()
    assert "█" * 30 + " " in text and "75%" in text and "class 3" in text and "1.0 ms a step" in text


def test_the_metrics_are_served_on_loopback(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["watch", str(bundle), str(tmp_path), "--idle", "3", "--prometheus", str(port)]
    thread = threading.Thread(target=main, args=(arguments,))
    thread.start()
    for number in range(4):
        save(tmp_path, number, 40)
    text, end = "", time.monotonic() + 60
    while "ttac_steps_total 1.0" not in text and time.monotonic() < end:
        time.sleep(0.05)
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
    thread.join(60)
    assert "ttac_samples_total 4.0" in text and "ttac_entropy_nats" in text and 'ttac_predictions_total{class="' in text


def test_a_taken_port_is_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("prometheus_client")
    with socket.socket() as taken_one:
        taken_one.bind(("127.0.0.1", 0))
        taken_one.listen()
        port = taken_one.getsockname()[1]
        assert main(["watch", str(bundle), str(tmp_path), "--prometheus", str(port)]) == 2
    assert "cannot serve the metrics" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_refused(bundle: Path, tmp_path: Path) -> None:
    assert Bundle.read(bundle).manifest["batch"]["planned"] == 4
    assert main(["watch", str(bundle), str(tmp_path), "--batch", "9"]) == 2
