"""State files: whole after any interruption, and refused if damaged or from elsewhere."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ttac
from tests.support import tiny_bundles as tiny
from tests.support.tiny_bundles import batch, state_of
from ttac.errors import TtacError, UsageError, VerificationError
from ttac.runtime import whole_file
from ttac.runtime.adapter import Adapter
from ttac.runtime.state_files import BLANK, write_state

FLIPS = 400
"""Random bits of a state file that are flipped, one at a time."""


@pytest.fixture
def ema(tmp_path: Path) -> Adapter:
    return ttac.load(tiny.ema(tmp_path / "ema.ttac"))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".ttac")


# --- damaged and foreign files ----------------------------------------------------------------------------------------


def test_no_flipped_bit_is_accepted(ema: Adapter, tmp_path: Path) -> None:
    ema.step(batch())
    path = tmp_path / "state"
    ema.save(path)
    data, random = path.read_bytes(), np.random.default_rng(4)
    for bit in random.choice(8 * len(data), FLIPS, replace=False):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises((UsageError, VerificationError)):
            ema.restore(path)
    path.write_bytes(data)
    ema.restore(path)


def test_no_zeroed_page_is_accepted(ema: Adapter, tmp_path: Path) -> None:
    path = tmp_path / "state"
    ema.save(path)
    data = path.read_bytes()
    for start in range(0, len(data) - 16, 16):
        path.write_bytes(data[:start] + bytes(16) + data[start + 16 :])
        if path.read_bytes() != data:
            with pytest.raises((UsageError, VerificationError)):
                ema.restore(path)


def test_another_reader_can_check_the_checksum(ema: Adapter, tmp_path: Path) -> None:
    import hashlib

    from safetensors import safe_open

    ema.save(tmp_path / "state")
    with safe_open(tmp_path / "state", framework="numpy") as file:
        checksum = file.metadata()["checksum"]
    data = (tmp_path / "state").read_bytes().replace(checksum.encode(), BLANK.encode())
    assert hashlib.sha256(data).hexdigest() == checksum
    np.testing.assert_equal(load_file(tmp_path / "state"), state_of(ema))


def foreign(path: Path, state: dict[str, np.ndarray], bundle: Path) -> None:
    """A state file of a bundle with other settings."""
    manifest = tiny.read(bundle)
    manifest["method"]["settings"]["lr"] = 0.25
    tiny.reseal(bundle, manifest)
    ttac.load(bundle).save(path)


def other_start(path: Path, state: dict[str, np.ndarray], bundle: Path) -> None:
    """A state file of a bundle with the same settings and another initial state."""
    save_file({**load_file(bundle / "state.safetensors"), "mean": np.ones(3, np.float32)}, bundle / "state.safetensors")
    tiny.reseal(bundle)
    ttac.load(bundle).save(path)


def older(path: Path, state: dict[str, np.ndarray], bundle: Path) -> None:
    save_file(state, path, {"format": "ttac-state-1", "bundle": ttac.load(bundle)._manifest.identity})


def overwritten(data: Callable[[bytes], bytes]) -> Callable[..., object]:
    return lambda path, state, bundle: path.write_bytes(data(path.read_bytes()))


def changed(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[..., None]:
    """The state with other tensors and a correct checksum."""

    def damage(path: Path, state: dict[str, np.ndarray], bundle: Path) -> None:
        change(state)
        write_state(path, state, ttac.load(bundle)._manifest.identity)

    return damage


@pytest.mark.parametrize(
    ("damage", "error", "problem"),
    [
        (lambda path, state, bundle: path.unlink(), UsageError, "there is no such state"),
        (lambda path, state, bundle: (path.unlink(), path.mkdir()), UsageError, "there is no such state"),
        (lambda path, state, bundle: (path.unlink(), os.mkfifo(path)), UsageError, "there is no such state"),
        (foreign, UsageError, "belongs to another model, method or settings"),
        (other_start, UsageError, "belongs to another model, method or settings"),
        (lambda path, state, bundle: save_file(state, path), UsageError, "belongs to another model"),
        (older, UsageError, "has the format 'ttac-state-1', this ttac reads 'ttac-state-2'"),
        (overwritten(lambda data: b"PK\x03\x04 not tensors at all"), UsageError, "the file is not a state"),
        (overwritten(lambda data: b""), VerificationError, "not a whole safetensors file"),
        (overwritten(lambda data: data[:-4]), VerificationError, "not a whole safetensors file"),
        (overwritten(lambda data: data + b"more"), VerificationError, "not a whole safetensors file"),
        (overwritten(lambda data: data[:-1] + b"\x07"), VerificationError, "does not match its checksum"),
        (changed(lambda state: state.pop("mean")), VerificationError, "lacks `mean`"),
        (changed(lambda state: state.update(more=np.ones(1))), VerificationError, "beyond the state table, `more`"),
        (changed(lambda state: state.update(mean=np.ones(4, np.float32))), VerificationError, r"float32 \[4\]"),
        (changed(lambda state: state.update(mean=np.ones(3))), VerificationError, "`mean` is float64"),
        (changed(lambda state: state["mean"].fill(np.nan)), VerificationError, "`mean` is not finite"),
    ],
)
def test_states_that_do_not_fit(
    tmp_path: Path, damage: Callable[..., object], error: type[TtacError], problem: str
) -> None:
    adapter, path = ttac.load(tiny.ema(tmp_path / "b")), tmp_path / "s.safetensors"
    adapter.step(batch())
    adapter.save(path)
    damage(path, load_file(path), tiny.ema(tmp_path / "other"))
    before, stats = state_of(adapter), adapter.stats
    with pytest.raises(error, match=problem) as caught:
        adapter.restore(path)
    assert str(path) in caught.value.where and caught.value.hint
    np.testing.assert_equal(state_of(adapter), before)
    assert adapter.stats == stats


@pytest.mark.parametrize("name", ["bn.var", "adam.v"])
def test_a_negative_variance_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    text = "forward (float[N,3] x) => (float[N,3] logits) { logits = Relu(x) }"
    state = {name: (np.ones(3, np.float32), "statistic")}
    tiny.write_bundle(
        folder, {"forward": tiny.parse(text)}, state, tiny.manifest_of({"forward": {}}, state, tiny.STEP, 3)
    )
    adapter = ttac.load(folder)
    write_state(tmp_path / "s", {name: np.array([1, -1, 1], np.float32)}, adapter._manifest.identity)
    with pytest.raises(VerificationError, match=f"the variance `{name}` is negative"):
        adapter.restore(tmp_path / "s")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_saving_keeps_the_previous_file(ema: Adapter, tmp_path: Path) -> None:
    target = tmp_path / "state"
    ema.save(target)
    first = target.read_bytes()
    assert names_in(tmp_path) == ["state"]
    for count in (1, 2):
        ema.step(batch())
        ema.save(target)
        assert names_in(tmp_path) == ["state", "state.previous"] and load_file(target)["count"] == count
        assert (tmp_path / "state.previous").read_bytes() == first
        first = target.read_bytes()
    target.write_bytes(first[:-1])
    with pytest.raises(VerificationError, match="not a whole") as caught:
        ema.restore(target)
    assert "state.previous" in caught.value.hint
    ema.restore(f"{target}.previous")
    assert state_of(ema)["count"] == 1


def test_saving_without_hard_links(ema: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links on this file system")

    ema.save(tmp_path / "state")
    monkeypatch.setattr(os, "link", refuse)
    ema.step(batch())
    ema.save(tmp_path / "state")
    assert names_in(tmp_path) == ["state", "state.previous"] and load_file(tmp_path / "state.previous")["count"] == 0


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644)])
def test_the_umask_decides_the_mode(ema: Adapter, tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        ema.save(tmp_path / "state")
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("name", ["missing/state", "nul\0byte", "n" * 300, "n" * 252, "."])
def test_paths_that_cannot_be_written(ema: Adapter, tmp_path: Path, name: str) -> None:
    (tmp_path / ("n" * 252)).write_text("old")
    with pytest.raises(UsageError, match="cannot write the file") as caught:
        ema.save(f"{tmp_path}/{name}")
    assert caught.value.hint and "\0" not in str(caught.value)
    assert names_in(tmp_path) == ["n" * 252] and (tmp_path / ("n" * 252)).read_text() == "old"


@pytest.mark.parametrize("problem", [errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file(
    ema: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: int, call: str
) -> None:
    ema.save(tmp_path / "state")
    before = (tmp_path / "state").read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(problem, os.strerror(problem))

    ema.step(batch())
    monkeypatch.setattr(*((os, "fsync", fail) if call == "fsync" else (Path, "replace", fail)))
    with pytest.raises(UsageError, match=os.strerror(problem)):
        ema.save(tmp_path / "state")
    monkeypatch.undo()
    assert (tmp_path / "state").read_bytes() == before and names_in(tmp_path) == ["state"]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy
from ttac.runtime import whole_file
moment, target = sys.argv[1:]
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
{"write": lambda: setattr(os, "fsync", die), "keep": lambda: setattr(whole_file, "_keep", die),
 "link": lambda: setattr(Path, "replace", die), "rename": lambda: setattr(whole_file, "sync_folder", die)}[moment]()
whole_file.write_whole(target, [b"new"], keep_previous=True)
"""


@pytest.mark.parametrize("moment", ["write", "keep", "link", "rename"])
def test_a_killed_save_is_old_or_new_and_swept(tmp_path: Path, moment: str) -> None:
    target = tmp_path / "state"
    target.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, moment, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == ("new" if moment == "rename" else "old")
    assert moment == "rename" or len(names_in(tmp_path)) > 1
    whole_file.write_whole(target, [b"newer"], keep_previous=True)
    assert names_in(tmp_path) == ["state", "state.previous"] and target.read_text() == "newer"


def test_a_save_in_progress_is_not_swept(tmp_path: Path) -> None:
    file, temporary = whole_file._create(tmp_path / "state")
    with file:
        whole_file.write_whole(tmp_path / "state", [b"other"])
        assert temporary.exists()
    whole_file.write_whole(tmp_path / "state", [b"other"])
    assert names_in(tmp_path) == ["state"]


def test_a_link_keeps_pointing_to_the_state(ema: Adapter, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    ema.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and load_file(tmp_path / "real")["count"] == 0
