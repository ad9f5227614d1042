"""Writing a bundle: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import ttac
from tests.support import tiny_bundles as tiny
from tests.support.tiny_bundles import change
from ttac.errors import UsageError, VerificationError
from ttac.runtime import replacement
from ttac.runtime.bundle import Bundle, check_replaceable, place, read_manifest, write_manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny.ema(tmp_path / "b")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_placing_a_bundle(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.ttac"
    placed = place(bundle, target)
    assert placed.path == target and placed.report == {"plan": []} and placed.manifest == read_manifest(target)
    assert names_in(tmp_path) == ["out.ttac"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in target.iterdir())
    ttac.load(target).step(tiny.batch())


def test_placing_replaces_a_bundle_or_fills_an_empty_folder(bundle: Path, tmp_path: Path) -> None:
    target = tiny.trained(tmp_path / "out.ttac")
    place(bundle, str(target))
    assert names_in(tmp_path) == ["out.ttac"] and "infer.onnx" in names_in(target)
    (tmp_path / "empty").mkdir()
    place(tiny.ema(tmp_path / "more"), tmp_path / "empty")
    ttac.load(tmp_path / "empty")


def test_a_damaged_bundle_may_be_replaced(bundle: Path, tmp_path: Path) -> None:
    damaged = tiny.ema(tmp_path / "out")
    change(damaged, "graphs", 5)
    place(bundle, damaged)
    ttac.load(damaged)


@pytest.mark.parametrize("manifest", [None, "{}", '{"name": "a web app", "icons": []}', "not json"])
def test_other_folders_are_not_overwritten(bundle: Path, tmp_path: Path, manifest: str | None) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("three years")
    if manifest is not None:
        (mine / "manifest.json").write_text(manifest)
    before = names_in(mine)
    with pytest.raises(UsageError, match="is not a ttac bundle"):
        place(bundle, mine)
    assert names_in(mine) == before and (bundle / "manifest.json").exists()


def test_files_and_links_are_not_overwritten(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(bundle)
    for target in (tmp_path / "file", tmp_path / "link"):
        with pytest.raises(UsageError, match="there is a file where the bundle should go"):
            check_replaceable(target)


def test_a_failing_rename_leaves_the_old_bundle(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny.trained(tmp_path / "out")
    before, rename = names_in(target), Path.rename

    def fail(self: Path, to: Path) -> Path:
        if self == bundle:
            raise OSError("the disk is full")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(replacement, "swap", lambda *_: False)
    with pytest.raises(UsageError, match="cannot write the bundle: the disk is full"):
        place(bundle, target)
    monkeypatch.undo()
    assert names_in(target) == before and names_in(tmp_path) == ["b", "out"]


def test_a_dry_bundle_has_no_path(bundle: Path) -> None:
    dry = Bundle.dry(bundle)
    assert dry.path is None and dry.manifest == read_manifest(bundle) and dry.report == {"plan": []}


def test_writing_checks_the_manifest_first(bundle: Path) -> None:
    manifest = tiny.read(bundle)
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(VerificationError, match="lacks `file`"):
        write_manifest(bundle, {**manifest, "graphs": {"forward": {}}})
    assert (bundle / "manifest.json").read_bytes() == before
    os.remove(bundle / "manifest.json")
    write_manifest(bundle, {key: value for key, value in manifest.items() if key != "files"})
    assert (bundle / "manifest.json").read_bytes() == before
