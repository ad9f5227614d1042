"""What the command line reads of a bundle: its manifest and its report, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttac.sizes import format_size

if TYPE_CHECKING:
    from ttac.runtime.bundle import Bundle

SMALL = 4 * 1024
"""Bytes below which the values of a plan share a line."""
COUNTED = ("batch", "steps")
"""Whole numbers among the figures of memory that are no bytes."""


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
        **({"pixels": manifest["preprocessing"]} if manifest.get("preprocessing") else {}),
        "batch": manifest["batch"]["planned"],
        "norm_sites": f"{len(sites)}, {trained} trained, {inserted} inserted",
        "state_tensors": len(manifest["state"]["tensors"]),
        "files": len(manifest["files"]) + 1,
        "executed_on": ", ".join(f"{one['package']} {one['version']}" for one in ran) or "not executed",
    }


def summary(bundle: Bundle) -> dict[str, Any]:
    """A bundle for people: its path (none for a dry run), its facts, and its report with fewer figures."""
    told = dict(bundle.report)
    planned, measured = (told.pop(part, None) or {} for part in ("planned", "measured"))
    told["plan"] = plan_table(told.get("plan", []))
    memory = {"memory": memory_table(planned, measured), "measured": _uncounted(measured)}
    return {"bundle": bundle.path and str(bundle.path), **facts(bundle.manifest), **told, **memory}


def plan_table(plan: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The plan's rows with what a person asks of them: layer, value, how, bytes, why; small ones share a line."""
    small = [row for row in plan if max(row["bytes"], row["dense"]) < SMALL]
    large = [row for row in plan if row not in small] if len(small) > 1 else list(plan)
    shares = any(row.get("share", 1.0) != 1.0 for row in large)
    rows: list[dict[str, Any]] = [
        {
            "layer": row.get("layer") or "-",
            "value": row["value"],
            "how": row["how"],
            **({"share": row["share"]} if shares else {}),
            "bytes": row["bytes"],
            "dense": row["dense"],
            "because": row["because"],
        }
        for row in large
    ]
    if len(small) > 1:
        rows.append(_together(f"{len(small)} small values", small))
    return [*rows, _together("all", plan)] if plan else []


def _together(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sums = {key: sum(row[key] for row in rows) for key in ("bytes", "dense")}
    return {"layer": name, "value": "", "how": "", **sums, "because": ""}


def memory_table(planned: Mapping[str, Any], measured: Mapping[str, Any]) -> list[dict[str, str]]:
    """Sizes that were planned beside those that were measured; `-` where there is only one of them."""
    names = [
        name
        for name in dict.fromkeys([*planned, *measured])
        if name not in COUNTED and isinstance(planned.get(name, measured.get(name)), int)
    ]
    sides = {"planned": planned, "measured": measured}
    return [
        {"of": name.replace("_", " "), **{side: _size(sizes.get(name)) for side, sizes in sides.items()}}
        for name in names
    ]


def _size(size: int | None) -> str:
    return "-" if size is None else format_size(size)


def _uncounted(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured besides bytes: seconds, steps, the batch."""
    return {name: value for name, value in figures.items() if name in COUNTED or not isinstance(value, int)}


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
