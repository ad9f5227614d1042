"""What the command line reads of a bundle: its manifest and its report, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttac.runtime.bundle import Bundle


def is_bundle(path: Path) -> bool:
    """Whether `path` is a folder with a manifest."""
    return path.is_dir() and (path / "manifest.json").is_file()


def facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest in a dozen lines."""
    sites = manifest.get("sites", [])
    trained, inserted = (sum(bool(site.get(key)) for site in sites) for key in ("trained", "inserted"))
    ran = manifest.get("executed_on") or []
    return {
        "method": manifest["method"]["name"],
        "settings": dict(manifest["method"].get("settings", {})),
        "target": f"{manifest['target']['name']} (opset {manifest['target']['opset']})",
        "source": manifest["source"]["file"],
        "input": _tensor(manifest["inputs"]),
        "output": _tensor(manifest["outputs"]),
        "head": _head(manifest.get("head")),
        "batch": manifest["batch"]["planned"],
        "norm_sites": f"{len(sites)}, {trained} trained, {inserted} inserted",
        "state_tensors": len(manifest["state"]["tensors"]),
        "files": len(manifest["files"]) + 1,
        "executed_on": ", ".join(f"{one['package']} {one['version']}" for one in ran) or "not executed",
    }


def summary(bundle: Bundle) -> dict[str, Any]:
    """A bundle for people: its path (none for a dry run), its facts, and its report."""
    return {"bundle": bundle.path and str(bundle.path), **facts(bundle.manifest), **bundle.report}


def contents(bundle: Bundle) -> dict[str, Any]:
    """A bundle for programs: its path (null for a dry run), its manifest and its report, as they are on disk."""
    path = bundle.path and str(bundle.path)
    return {"bundle": path, "manifest": dict(bundle.manifest), "report": dict(bundle.report)}


def _head(head: Mapping[str, Any] | None) -> str:
    if head is None:
        return "not read"
    return f"{head['kind']}, {head['values'].replace('_', ' ')}" + (
        "" if head["axis"] is None else f", axis {head['axis']}"
    )


def _tensor(tensors: list[Mapping[str, Any]]) -> str:
    return "; ".join(f"{tensor['name']} {tensor['dtype']} {tensor['shape']}".replace("'", "") for tensor in tensors)
