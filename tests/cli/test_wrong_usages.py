"""Wrong usages of a new user: each ends with a problem, its place, a way out and exit code 2 or 3, and writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Run
from tests.support.source_models import saved, source
from tests.support.tiny_bundles import ema
from ttac.runtime.whole_file import write_whole

SMALL_DISK = """
import resource, sys
from ttac.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
sys.exit(main(["demo", "--files", sys.argv[1]]))
"""
"""A limit on the size of a file fails like a full disk: at a write, with an OSError."""


def test_labels_of_text(run: Run, tmp_path: Path) -> None:
    images, names = np.zeros((4, 3, 8, 8), np.float32), np.array(["cat", "dog", "cat", "dog"])
    np.savez("s.npz", images=images, labels=names)
    model = saved(source(), tmp_path)
    seen = run("eval", str(model), "--data", "s.npz", "--methods", "bn")
    assert seen.code == 2 and "error: the labels are `<U3`, not class numbers\n  at `s.npz`" in seen.err
    assert "np.unique(labels, return_inverse=True)[1]" in seen.err


def test_a_folder_of_images_for_a_series(run: Run, tmp_path: Path) -> None:
    ema(tmp_path / "tiny.ttac")
    Path("images").mkdir()
    Image.new("L", (8, 8)).save("images/0.png")
    seen = run("run", "tiny.ttac", "images")
    problem = "error: the model takes samples of shape [3], not images\n  at the input of the model\n"
    assert seen.code == 2 and problem in seen.err and ".npy" in seen.err


@pytest.mark.parametrize("command", ["inspect", "compile"])
def test_arrays_named_as_a_model(run: Run, command: str) -> None:
    with Path("model.onnx").open("wb") as file:
        np.savez(file, x=np.zeros(3))
    seen = run(command, "model.onnx")
    assert seen.code == 3 and "arrays of NumPy (`.npz`), not ONNX\n  at `model.onnx`" in seen.err


FULL_DEVICE = Path("/dev/full")


@pytest.mark.skipif(not FULL_DEVICE.is_char_device(), reason="the system has no /dev/full")
def test_a_table_on_a_full_disk() -> None:
    with FULL_DEVICE.open("w") as full:
        command = [sys.executable, "-m", "ttac", "methods"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert "error: cannot write the output: No space left on device\n  at stdout" in done.stderr
    assert done.returncode == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_an_output_that_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """An administrator's `-o /dev/null` must not replace the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, [b"content"])
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert pipe.is_fifo() and [*tmp_path.iterdir()] == [pipe]


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="the system has no links to open files")
def test_an_open_pipe_is_an_output() -> None:
    """As `-o /dev/stdout` is, before a pipe."""
    reader, writer = os.pipe()
    try:
        write_whole(f"/dev/fd/{writer}", [b"content"])
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on the size of a file")
def test_the_demo_on_a_full_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SMALL_DISK, str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "error: cannot write the file" in done.stderr
    assert f"at `{tmp_path / 'demo' / 'model.onnx'}`" in done.stderr
    assert not list((tmp_path / "demo").iterdir())


def test_a_long_reason_stands_once(run: Run, tmp_path: Path) -> None:
    """A model without norms: the way out is long, and the same for most methods."""
    text = "net (float[batch,3] x) => (float[batch,5] y) { y = MatMul (x, w) }"
    model = saved(source(text, {"w": (3, 5)}), tmp_path)
    seen = run("inspect", str(model))
    assert seen.code == 0 and seen.out.count("nothing to adapt") == 1 and seen.out.count("as `bn`") > 5
