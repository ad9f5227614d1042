"""The staging folder of a compile: swept after a kill, and a clear error on a full disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ttac.errors import UsageError
from ttac.options import CompileOptions
from ttac.staging import staging

MODEL = Path(__file__).resolve().parents[1] / "models" / "resnet.onnx"

HELD = """
import sys, time, types
from pathlib import Path
from ttac.staging import staging
with staging(types.SimpleNamespace(output=Path(sys.argv[1]), dry_run=False)) as folder:
    (folder / "forward.onnx").write_bytes(b"half")
    print(folder, flush=True)
    time.sleep(60)
"""

SMALL_DISK = """
import resource, sys
from ttac.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
sys.exit(main(["compile", sys.argv[2], "--method", "bn", "--target", "cpu", "-o", sys.argv[3], "--batch", "4"]))
"""
"""A limit on the size of a file fails like a full disk: at a write, with an OSError."""


def options(output: Path) -> CompileOptions:
    class Options:
        dry_run = False

    made = Options()
    made.output = output  # type: ignore[attr-defined]
    return made  # type: ignore[return-value]


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks")
def test_the_folder_of_a_killed_compile_is_swept(tmp_path: Path) -> None:
    output = tmp_path / "out.ttac"
    child = subprocess.Popen([sys.executable, "-c", HELD, output], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    folder = Path(child.stdout.readline().strip())
    with staging(options(output)):
        assert folder.is_dir(), "the folder of a living compile stays"
    child.kill()
    child.wait()
    child.stdout.close()
    assert folder.is_dir()
    with staging(options(output)) as mine:
        assert not folder.exists() and [mine.parent] == list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write the bundle: No space left on device") as caught:
        with staging(options(tmp_path / "out.ttac")):
            raise OSError(28, "No space left on device", "/media/card/forward.onnx")
    assert caught.value.where == "`/media/card/forward.onnx`" and "free space" in caught.value.hint


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on the size of a file")
@pytest.mark.parametrize("limit", [2_000, 20_000])
def test_a_compile_on_a_full_disk(tmp_path: Path, limit: int) -> None:
    command = [sys.executable, "-c", SMALL_DISK, str(limit), MODEL, tmp_path / "out.ttac"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "internal" not in done.stderr, done.stderr
    assert "error: cannot write" in done.stderr and "  at `" in done.stderr
    assert not list(tmp_path.iterdir())
