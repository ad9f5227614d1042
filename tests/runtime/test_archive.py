"""A bundle in one file: the same numbers as the folder, the same bytes at each writing, and one reading only."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import ttac
from benchmarks.conformance_kit.odd_archives import EDITS
from tests.support import tiny_bundles as tiny
from tests.support.tiny_bundles import batch, state_of
from ttac.errors import UsageError, VerificationError
from ttac.runtime import archive, engine, engine_import, hash_check
from ttac.runtime.bundle import Bundle, is_bundle, open_bundle, pack, read_manifest
from ttac.runtime.source_monitor import SourceMonitor

ALIGNMENT = 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.ema(tmp_path / "folder.ttac")


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    pack(folder, tmp_path / "one.ttac")
    return tmp_path / "one.ttac"


@pytest.mark.parametrize("private", [0, hash_check.PRIVATE_BYTES], ids=["mapped", "copied"])
@pytest.mark.parametrize("make", [tiny.ema, tiny.trained])
def test_the_file_steps_as_the_folder(
    make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: int
) -> None:
    monkeypatch.setattr(hash_check, "PRIVATE_BYTES", private)
    whole = make(tmp_path / "folder.ttac")
    pack(whole, tmp_path / "one.ttac")
    one, many = ttac.load(tmp_path / "one.ttac"), ttac.load(whole)
    shutil.rmtree(whole)
    for seed in range(3):
        np.testing.assert_array_equal(one.step(batch(4, seed)), many.step(batch(4, seed)))
    np.testing.assert_equal(state_of(one), state_of(many))


def test_a_state_fits_file_and_folder(folder: Path, packed: Path, tmp_path: Path) -> None:
    one, many = ttac.load(packed), ttac.load(folder)
    one.step(batch())
    one.save(tmp_path / "state")
    many.restore(tmp_path / "state")
    np.testing.assert_equal(state_of(one), state_of(many))


def test_graphs_with_copied_weights(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines before 1.21 get the weights in the graph; onnx's evaluator reads the same bytes."""
    graph = open_bundle(packed).files.graph("forward.onnx")
    assert not isinstance(graph, Path)
    expected = ttac.load(packed).step(batch())
    reference = ReferenceEvaluator(onnx.load_model_from_string(graph.inlined()))
    feed = {"x": batch(), "mean": np.array([0.5, 0, -0.5], np.float32), "count": np.array(0)}
    np.testing.assert_allclose(reference.run(["logits"], feed)[0], expected, rtol=1e-6, atol=1e-7)
    monkeypatch.setattr(engine, "release", lambda version: (1, 18))
    np.testing.assert_array_equal(ttac.load(packed).step(batch()), expected)


def test_graphs_that_point_into_the_file(packed: Path) -> None:
    graph = open_bundle(packed).files.graph("forward.onnx")
    assert not isinstance(graph, Path)
    (tensor,) = [t for t in onnx.load_model_from_string(graph.located("one.ttac")).graph.initializer if t.external_data]
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = packed.read_bytes()[int(place["offset"]) :][: int(place["length"])]
    assert place["location"] == "one.ttac" and data == tiny.GAIN.tobytes()


def test_the_standard_library_reads_the_file(folder: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed) as file:
        assert file.testzip() is None
        names = file.namelist()
        assert names[0] == "manifest.json" and set(names[1:]) == set(read_manifest(folder)["files"])
        for member in file.infolist():
            assert member.compress_type == zipfile.ZIP_STORED
            assert file.read(member) == (folder / member.filename).read_bytes()


def test_members_begin_at_multiples_of_64_bytes(packed: Path) -> None:
    members = archive.read_archive(packed, 1 << 20).members
    assert len(members) > 2 and all(span.start % ALIGNMENT == 0 for span in members.values())


def test_equal_bundles_give_equal_bytes(folder: Path, packed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for file in other.iterdir():
        os.utime(file, (0, 0))
    (other / "form-cache.json").write_text("{}")
    assert pack(other, tmp_path / "two.ttac").path == tmp_path / "two.ttac"
    pack(packed, tmp_path / "three.ttac")
    assert packed.read_bytes() == (tmp_path / "two.ttac").read_bytes() == (tmp_path / "three.ttac").read_bytes()


def test_a_zip_of_the_standard_library_is_a_bundle(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "by-hand.ttac"
    with zipfile.ZipFile(made, "w") as file:
        for name in ["manifest.json", *sorted(read_manifest(folder)["files"])]:
            file.write(folder / name, name)
    np.testing.assert_array_equal(ttac.load(made).step(batch()), ttac.load(folder).step(batch()))


def test_the_manifest_of_a_file(folder: Path, packed: Path) -> None:
    assert is_bundle(packed) and read_manifest(packed) == read_manifest(folder)
    assert Bundle.read(packed).report == Bundle.read(folder).report
    assert ttac.InferenceSession(packed).get_modelmeta().graph_name == "source"


def test_the_monitor_reads_the_source_model(packed: Path) -> None:
    monitor = SourceMonitor(packed, every=1)
    assert monitor.look(batch(), np.maximum(batch() @ tiny.GAIN, 0))


def test_a_file_that_is_written_to_is_refused(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_check, "PRIVATE_BYTES", 0)
    adapter = ttac.load(packed)
    adapter.step(batch())
    with packed.open("ab") as file:
        file.write(b"x")
    with pytest.raises(VerificationError, match="changed while the bundle was in use"):
        adapter.step(batch())


def test_a_replaced_file_keeps_its_adapter(packed: Path, tmp_path: Path) -> None:
    adapter = ttac.load(packed)
    pack(tiny.trained(tmp_path / "other.ttac"), packed)
    assert np.isfinite(adapter.step(batch())).all()
    assert read_manifest(packed)["graphs"].keys() != adapter.bundle.manifest["graphs"].keys()


def test_another_content_is_refused(packed: Path) -> None:
    data = bytearray(packed.read_bytes())
    at = data.index(tiny.GAIN.tobytes())
    data[at] ^= 1
    packed.write_bytes(data)
    with pytest.raises(VerificationError, match="not the one the manifest was written for"):
        ttac.load(packed)


def test_packing_keeps_other_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep")
    for taken in (tmp_path / "notes.txt", folder):
        with pytest.raises(UsageError, match="there is something where the bundle should go"):
            pack(folder, taken)
    assert (tmp_path / "notes.txt").read_text() == "keep"


def test_an_ordinary_file_is_no_bundle(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04", b"x" * 100):
        (tmp_path / "file").write_bytes(content)
        assert not is_bundle(tmp_path / "file")
        with pytest.raises(UsageError, match="the path is a file, not a bundle"):
            ttac.load(tmp_path / "file")


PROBLEMS = {
    "compressed": "is compressed",
    "two-sizes": "is compressed",
    "encrypted": "is encrypted",
    "streamed": "has the flags 0x8",
    "symbolic-link": "is a link",
    "folder": "is a link or another special file",
    "absolute-path": "no plain file name",
    "parent": "no plain file name",
    "backslash": "no plain file name",
    "control-character": "no plain file name",
    "not-utf-8": "no plain file name",
    "overlap": "overlap",
    "header-of-another-name": "differs from the directory",
    "header-of-another-size": "differs from the directory",
    "bytes-in-front": "directory does not end",
    "bytes-behind": "does not end with the record",
    "comment": "does not end with the record",
    "other-count": "does not end with the record",
    "no-members": "does not end with the record",
    "too-many-members": "directory is damaged|more bytes than entries|not a plain zip",
    "directory-elsewhere": "directory does not end",
    "cut": "does not end with the record",
    "only-a-head": "does not end with the record",
    "manifest-with-another-content": "does not have its checksum",
}
"""Name of a change -> the problem that the error names."""


@pytest.mark.parametrize("name", EDITS)
def test_a_zip_with_two_readings_is_refused(packed: Path, name: str) -> None:
    packed.write_bytes(EDITS[name](bytearray(packed.read_bytes())))
    with pytest.raises(VerificationError, match=PROBLEMS[name]) as caught:
        ttac.load(packed)
    assert "not a plain zip" in caught.value.problem


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    tiny.trained(tmp_path / "b")
    twice = tmp_path / "twice.ttac"
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(twice, "w") as file:
        for name in ["manifest.json", "forward.onnx", "forward.onnx"]:
            file.write(tmp_path / "b" / name, name)
    with pytest.raises(VerificationError, match="is there twice"):
        ttac.load(twice)


def test_a_missing_member_is_refused(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "one.ttac", "w") as file:
        file.write(folder / "manifest.json", "manifest.json")
    with pytest.raises(VerificationError, match="a file of the bundle is missing"):
        ttac.load(tmp_path / "one.ttac")


def test_every_changed_byte_is_harmless(packed: Path) -> None:
    """A flipped byte is refused, or lies in a date, a version or a padding, and the bundle is the same."""
    random, expected = np.random.default_rng(0), ttac.load(packed).predict(batch())
    original = packed.read_bytes()
    for at in random.integers(0, len(original), 60):
        data = bytearray(original)
        data[at] ^= 1 << int(random.integers(8))
        packed.write_bytes(data)
        try:
            with ttac.load(packed) as adapter:
                np.testing.assert_array_equal(adapter.predict(batch()), expected)
        except (VerificationError, UsageError):
            continue


def test_the_checksums_are_those_of_the_content(packed: Path, folder: Path) -> None:
    with zipfile.ZipFile(packed) as file:
        for member in file.infolist():
            assert member.CRC == zlib.crc32((folder / member.filename).read_bytes())


def test_a_large_bundle_stays_a_folder(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST", 1000)
    with pytest.raises(UsageError, match="at most 4 GiB"):
        pack(folder, tmp_path / "one.ttac")
    assert not (tmp_path / "one.ttac").exists()


def test_releases_are_compared_by_numbers() -> None:
    assert engine_import.release("1.9.0") < engine_import.release("1.21.0.dev1") == (1, 21)
