"""Read and verify a bundle on disk, or write a bundle that appears whole or not at all.

This module does not load the engine.  Writing needs the standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttac.errors import UsageError, VerificationError
from ttac.runtime.archive import Archive, is_archive, read_archive, write_archive
from ttac.runtime.graph_check import check_hashed_graph
from ttac.runtime.hash_check import BundleFiles, digest_of, inside
from ttac.runtime.json_values import HINT, MANIFEST, decode_object
from ttac.runtime.manifest import LARGEST, parse_manifest
from ttac.runtime.packed_graph import PackedGraph
from ttac.runtime.records import WEIGHTS, Manifest
from ttac.runtime.replacement import exchange, read_unreplaced
from ttac.runtime.whole_file import sync_folder

REPORT = "report.json"
NO_BUNDLE = "`ttac compile` prints the path of the bundle it wrote"
NO_ARCHIVE = f"give a bundle: a folder, or the file of `ttac pack`, which begins with `{MANIFEST}`"


@dataclass(frozen=True, repr=False)
class Bundle:
    """The result of a compile.

    Attributes:
        path: the folder, or the file of `ttac pack`; None after a dry run.
        manifest: the content of `manifest.json` (`docs/bundle.md`).
        report: the plan and the verified numbers, empty if there are none.
    """

    path: Path | None
    manifest: Mapping[str, Any]
    report: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """A line with the folder, the method, the target and the planned batch."""
        method, target = self.manifest["method"]["name"], self.manifest["target"]["name"]
        planned = self.manifest["batch"]["planned"]
        return f"<Bundle {self.path or '(dry run)'}: {method} for {target}, up to {planned} samples a step>"

    @classmethod
    def read(cls, folder: str | Path) -> Bundle:
        """Return the bundle at `folder`, with all hashes verified; raises the errors of `open_bundle`."""
        folder = Path(folder)
        opened = read_unreplaced(folder, lambda: open_bundle(folder))
        return cls(folder, opened.manifest.raw, report_of(opened, folder))

    @classmethod
    def dry(cls, folder: Path) -> Bundle:
        """Return the manifest and report of `folder`, which the caller deletes, as a bundle without a path."""
        manifest = read_manifest(folder)
        return cls(None, manifest, _report(folder, manifest["files"]))


def report_of(opened: OpenBundle, folder: Path) -> dict[str, Any]:
    """Return the report of an open bundle, empty if there is none."""
    if REPORT not in opened.manifest.files:
        return {}
    return decode_object(opened.files.content(REPORT).tobytes(), f"`{folder / REPORT}`")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the checked manifest of the bundle in `folder`; the other files stay unread.

    Raises:
        UsageError: there is no such folder, or it is not a bundle.
        RuntimeMissingError: the bundle needs a newer ttac.
        VerificationError: the manifest is damaged.
    """
    folder = Path(folder)
    return dict(read_unreplaced(folder, lambda: _read_manifest(folder)).raw)


@dataclass(frozen=True)
class OpenBundle:
    """A verified bundle: its manifest, and its files as they were hashed."""

    manifest: Manifest
    files: BundleFiles


def open_bundle(folder: str | Path) -> OpenBundle:
    """Return the parsed manifest of `folder` and its files; every listed file exists and has its hash.

    Raises the errors of `read_manifest`, and VerificationError for a missing or changed file, a link that leaves the
    folder, or a graph whose weights lie outside the listed files.
    """
    folder = Path(folder)
    archive = read_archive(folder, LARGEST) if is_archive(folder) else None
    manifest = _read_manifest(folder, archive)
    files = BundleFiles(folder, manifest.files, archive)
    size = len(files.content(WEIGHTS)) if WEIGHTS in manifest.files else 0
    portable: list[tuple[str, tuple[str, ...]]] = [(graph.file, ()) for graph in manifest.graphs.values()]
    others = [(file, form.domains) for form in manifest.forms for file in (form.probe, *form.graphs.values())]
    for file, domains in (*portable, *others):
        path = folder / file
        for place in check_hashed_graph(files.content(file), manifest.files[file], f"`{path}`", domains):
            if place.location != WEIGHTS or place.offset + place.length > size:
                raise VerificationError(
                    f"the graph wants {place.length} bytes at {place.offset} of `{place.location}`",
                    where=f"`{path}`",
                    hint=f"external data lies in `{WEIGHTS}` only; {HINT}",
                )
    return OpenBundle(manifest, files)


def pack(bundle: str | Path, output: str | Path) -> Bundle:
    """Write the bundle to the file `output`, and return it: a zip without compression, which every reader maps.

    Equal bundles give equal bytes.  Raises the errors of `open_bundle`, and UsageError if `output` is something else
    than a bundle in one file, or cannot be written.
    """
    bundle, output = Path(bundle), Path(output)
    if os.path.lexists(output) and not is_archive(output):
        hint = "choose another path, or remove the path"
        raise UsageError("there is something where the bundle should go", where=f"`{output}`", hint=hint)
    opened, manifest = read_unreplaced(bundle, lambda: (open_bundle(bundle), manifest_bytes(bundle)))
    names = sorted(opened.manifest.files)
    write_archive(output, {MANIFEST: manifest, **{name: opened.files.content(name).data for name in names}})
    return Bundle.read(output)


def graph_at(path: Path) -> Path | PackedGraph:
    """Return the graph at `path` as the engine takes it: a file, or `model.ttac/infer.onnx` in a bundle of one file.

    Raises the errors of `open_bundle` for the latter.
    """
    if not is_archive(path.parent):
        return path
    return read_unreplaced(path.parent, lambda: open_bundle(path.parent)).files.graph(path.name)


def check_replaceable(target: Path) -> None:
    """Raise UsageError if writing a bundle to `target` would overwrite something else."""
    hint = "choose another path, or remove the path"
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError("there is a file where the bundle should go", where=f"`{target}`", hint=hint)
    if target.is_dir() and any(target.iterdir()) and not _has_format(target):
        raise UsageError("the folder is not empty and is not a ttac bundle", where=f"`{target}`", hint=hint)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.json` into `folder`; a manifest without `files` gets the hashes of all other files in the folder.

    Raises VerificationError if `read_manifest` would refuse the manifest.
    """
    if "files" not in manifest:
        paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
        manifest = {**manifest, "files": {path.name: digest_of(path) for path in paths}}
    parse_manifest(manifest)
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def place(staged: Path, target: str | Path) -> Bundle:
    """Move the finished bundle `staged` to `target`, on the same file system, and return the moved bundle.

    The new bundle replaces an older bundle at `target`, which is deleted last.  Raises UsageError if `target` is
    something else than a bundle, or if the bundle cannot be written.
    """
    target = Path(target)
    manifest = read_manifest(staged)
    check_replaceable(target)
    try:
        _sync(staged)
        exchange(staged, target)
    except OSError as error:
        raise UsageError(
            f"cannot write the bundle: {error}", where=f"`{target}`", hint="choose another `-o`"
        ) from error
    return Bundle(target, manifest, _report(target, manifest["files"]))


def _read_manifest(folder: Path, archive: Archive | None = None) -> Manifest:
    return parse_manifest(decode_object(manifest_bytes(folder, archive), f"`{folder / MANIFEST}`"))


def manifest_bytes(folder: Path, archive: Archive | None = None) -> bytes:
    """The content of the manifest; raises UsageError where no bundle is, VerificationError for a damaged one."""
    if archive or is_archive(folder):
        return (archive or read_archive(folder, LARGEST)).manifest
    if not folder.is_dir():
        problem = "the path is a file, not a bundle" if folder.exists() else "there is no such bundle"
        raise UsageError(problem, where=f"`{folder}`", hint=NO_BUNDLE if not folder.exists() else NO_ARCHIVE)
    path = folder / MANIFEST
    if path.is_symlink():
        raise VerificationError("the manifest is a symbolic link", where=f"`{path}`", hint=HINT)
    if not path.is_file():
        raise UsageError(
            f"the folder is not a bundle: it has no `{MANIFEST}`",
            where=f"`{folder}`",
            hint=NO_BUNDLE,
        )
    if path.stat().st_size > LARGEST:
        raise VerificationError("the manifest is larger than 64 MiB", where=f"`{path}`", hint=HINT)
    return path.read_bytes()


def _report(folder: Path, files: Mapping[str, str]) -> dict[str, Any]:
    if REPORT not in files:
        return {}
    path = inside(folder, REPORT)
    return decode_object(path.read_bytes(), f"`{path}`")


def is_bundle(path: Path) -> bool:
    """Whether `path` is a folder with a manifest, or a zip that begins with one, valid or not."""
    return (path / MANIFEST).is_file() if path.is_dir() else is_archive(path)


def _has_format(folder: Path) -> bool:
    """Whether the folder holds a manifest with a format, valid otherwise or not."""
    try:
        return "format" in decode_object((folder / MANIFEST).read_bytes(), "")
    except (OSError, VerificationError):
        return False


def _sync(folder: Path) -> None:
    """Write the files through to the disk, readable for all: safetensors gives read access to the owner only."""
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
