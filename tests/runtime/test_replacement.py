"""A bundle that changes while it is read or in use: one whole version, or a clear error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support import tiny_bundles as tiny
from ttac.errors import RuntimeMissingError, TtacError, VerificationError
from ttac.runtime import hash_check, replacement
from ttac.runtime.bundle import open_bundle, place
from ttac.runtime.engine import Session


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny.ema(tmp_path / "b")


def other(folder: Path, gain: float) -> Path:
    """The tiny bundle with another weight, so that its logits tell its version."""
    tiny.ema(folder)
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-24:] = np.full(6, gain, np.float32).tobytes()
    (folder / "weights.safetensors").write_bytes(bytes(data))
    tiny.reseal(folder)
    return folder


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("damage", ["cut", "write"])
def test_a_changed_weights_file_stops_the_next_step(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, damage: str, mapped: bool
) -> None:
    monkeypatch.setattr(hash_check, "PRIVATE_BYTES", 0 if mapped else hash_check.PRIVATE_BYTES)
    adapter, weights = ttac.load(bundle), bundle / "weights.safetensors"
    adapter.step(tiny.batch())
    before = tiny.state_of(adapter)
    if damage == "cut":
        os.truncate(weights, 4)
    else:
        with weights.open("rb+") as file:
            file.write(b"\0" * 4)
        os.utime(weights, ns=(1, 1))
    for call in (adapter.step, adapter.predict):
        with pytest.raises(VerificationError, match="the file changed while the bundle was in use") as caught:
            call(tiny.batch())
        assert "weights.safetensors" in caught.value.where and "load the bundle again" in caught.value.hint
    np.testing.assert_array_equal(before["mean"], tiny.state_of(adapter)["mean"])


def test_an_adapter_outlives_a_replaced_folder(bundle: Path, tmp_path: Path) -> None:
    adapter, manifest = ttac.load(bundle), tiny.read(bundle)
    expected = adapter.predict(tiny.batch())
    place(other(tmp_path / "new", 2.0), bundle)
    np.testing.assert_array_equal(adapter.predict(tiny.batch()), expected)
    assert adapter.bundle.manifest == manifest != tiny.read(bundle)


def test_a_replacement_during_the_load_is_read_whole(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is replaced after the hash check, before the engine opens the graphs."""
    new = other(tmp_path / "new", 2.0)
    expected = ttac.load(new).predict(tiny.batch())
    opened, replaced = Session.__init__, []

    def init(self: Session, *arguments: object) -> None:
        if not replaced:
            replaced.append(place(new, bundle))
        opened(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "__init__", init)
    adapter = ttac.load(bundle)
    assert replaced and adapter.bundle.manifest == tiny.read(bundle)
    np.testing.assert_array_equal(adapter.predict(tiny.batch()), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no path through a descriptor")
def test_an_opened_bundle_leads_to_no_other_version(bundle: Path, tmp_path: Path) -> None:
    """The graph of one version with the shorter weights of another ended the process in the engine."""
    opened = open_bundle(bundle)
    moved = bundle.rename(tmp_path / "moved")
    shutil.copytree(other(tmp_path / "new", 2.0), bundle)
    assert Path(opened.files.graph("forward.onnx")).samefile(moved / "forward.onnx")  # type: ignore[arg-type]
    opened.files.check_paths(["forward.onnx", "weights.safetensors"])
    shutil.rmtree(moved)
    with pytest.raises(VerificationError, match="was replaced while the engine opened"):
        opened.files.check_paths(["forward.onnx"])


def test_a_refused_graph_is_named_in_its_folder(bundle: Path) -> None:
    (bundle / "forward.onnx").write_bytes(
        tiny.parse("f (float[N,3] x) => (float[N,3] y) { y = Nothing(x) }").SerializeToString()
    )
    tiny.reseal(bundle)
    with pytest.raises(RuntimeMissingError) as caught:
        ttac.load(bundle)
    assert caught.value.where == f"`{bundle / 'forward.onnx'}`"


@pytest.mark.parametrize("atomic", [True, False])
def test_loads_during_replacements_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool) -> None:
    if not atomic:
        monkeypatch.setattr(replacement, "swap", lambda *_: False)
    versions = [other(tmp_path / f"v{number}", number) for number in (1.0, 2.0)]
    known = {tiny.read(v)["files"]["weights.safetensors"]: ttac.load(v).predict(tiny.batch()) for v in versions}
    target = shutil.copytree(versions[0], tmp_path / "out.ttac")
    end = threading.Event()

    def replace() -> None:
        number = 0
        while not end.wait(0.02):
            number += 1
            place(shutil.copytree(versions[number % 2], tmp_path / "staged"), target)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(60):
            adapter = ttac.load(target)
            expected = known[adapter.bundle.manifest["files"]["weights.safetensors"]]
            np.testing.assert_array_equal(adapter.predict(tiny.batch()), expected)
    finally:
        end.set()
        writer.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ttac", "v1.0", "v2.0"]


KILLED = """
import os, pathlib, sys
from ttac.runtime import replacement
from ttac.runtime.bundle import open_bundle, place
rename, calls = pathlib.Path.rename, []
def die(self, to):
    calls.append(to)
    if len(calls) == 2: os._exit(9)
    return rename(self, to)
pathlib.Path.rename = die
replacement.swap = lambda *_: False
place(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


def test_a_killed_exchange_is_repaired_by_the_next_load(bundle: Path, tmp_path: Path) -> None:
    new = other(tmp_path / "new", 2.0)
    expected = tiny.read(bundle)
    assert subprocess.run([sys.executable, "-c", KILLED, new, bundle], check=False).returncode == 9
    assert not bundle.exists()
    assert ttac.load(bundle).bundle.manifest == expected
    place(new, bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_leftover_beside_a_whole_bundle_is_swept(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / ".b.0123abcd")
    place(other(tmp_path / "new", 2.0), bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_file_that_disappears_is_no_raw_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacement, "READS", 3)
    (bundle / "forward.onnx").unlink()
    with pytest.raises(TtacError, match="a file of the bundle is missing"):
        ttac.load(bundle)
