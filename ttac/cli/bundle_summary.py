"""The manifest and the report of a bundle, summarised for a person or complete for a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ttac.sizes import format_size

if TYPE_CHECKING:
    from ttac.runtime.bundle import Bundle

SMALL_BYTES = 4 * 1024
"""Bytes below which the values of a plan share one line."""
COUNTS = ("batch", "steps")
"""Names of whole numbers among the figures of memory that count something other than bytes."""


def facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest in a dozen lines."""
    sites, trained, inserted = _site_counts(manifest)
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
        "norm_sites": f"{sites}, {trained} trained, {inserted} inserted",
        "state_tensors": len(manifest["state"]["tensors"]),
        "files": len(manifest["files"]) + 1,
        "executed_on": _engines(manifest) or "not executed",
        "runs_on": "the CPU",
    }


def overview(bundle: Bundle) -> dict[str, Any]:
    """Return a bundle for a person, without its report."""
    return {"bundle": bundle.path and str(bundle.path), **facts(bundle.manifest)}


def summary(bundle: Bundle) -> dict[str, Any]:
    """Return a bundle for a person: its path (None for a dry run), its facts, and its report with fewer figures."""
    report = dict(bundle.report)
    planned, measured = (report.pop(part, None) or {} for part in ("planned", "measured"))
    report["plan"] = plan_table(report.get("plan", []))
    memory = {"memory": memory_table(planned, measured), "measured": _without_bytes(measured)}
    return {**overview(bundle), **report, **memory}


def verdict(bundle: Bundle) -> list[str]:
    """Return at most five sentences on a bundle: its method, samples, cost of a step, checks and next command."""
    manifest, report = bundle.manifest, bundle.report
    lines = [_adapted(manifest), _samples(manifest)]
    if cost := _cost(report):
        lines.append(cost)
    if checks := _checks(manifest, report):
        lines.append(checks)
    return [*lines, f"next: ttac run {bundle.path} SAMPLES.npz"]


def _adapted(manifest: Mapping[str, Any]) -> str:
    method, source = manifest["method"]["name"], manifest["source"]["file"]
    sites, trained, inserted = _site_counts(manifest)
    if not sites:
        return f"`{method}` on `{source}`: no norm adapts"
    more = [f"{trained} trained" if trained else "none trained"]
    more += [f"{inserted} inserted where the export folded them"] if inserted else []
    return f"`{method}` on `{source}`: {sites} norms adapt, {', '.join(more)}"


def _site_counts(manifest: Mapping[str, Any]) -> tuple[int, int, int]:
    """Numbers of the norms that adapt, of those that train, and of those that were inserted."""
    sites = manifest.get("sites", [])
    trained, inserted = (sum(bool(site.get(key)) for site in sites) for key in ("trained", "inserted"))
    return len(sites), trained, inserted


def _engines(manifest: Mapping[str, Any]) -> str:
    """Package and version of each engine that executed the bundle; empty if none did."""
    return ", ".join(f"{engine['package']} {engine['version']}" for engine in manifest.get("executed_on") or [])


def _samples(manifest: Mapping[str, Any]) -> str:
    planned = manifest["batch"]["planned"]
    batch = "one sample a step" if planned == 1 else f"up to {planned} samples a step"
    return f"{batch}: {_tensor(manifest['inputs'])} -> {_tensor(manifest['outputs'])}"


def _cost(report: Mapping[str, Any]) -> str:
    """The measured, or else the planned, cost of a step; empty where neither is known."""
    measured, planned = (report.get(name) or {} for name in ("measured", "planned"))
    if "peak" in measured:
        time = f" and {1e3 * measured['seconds']:.1f} ms" if "seconds" in measured else ""
        return f"a step takes {format_size(measured['peak'])}{time}, measured at compile time on the CPU"
    return f"a step is planned to take {format_size(planned['peak'])}" if "peak" in planned else ""


def _checks(manifest: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The engines that executed the bundle, and the difference of the gradients from finite differences."""
    engines = _engines(manifest)
    if not engines:
        return "not executed by an engine yet"
    derivative = (report.get("verified") or {}).get("derivative")
    gradients = "" if derivative is None else f"; gradients within {derivative:.0e} of finite differences"
    return f"checked with {engines}{gradients}"


def plan_table(plan: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the plan's rows for a person: layer, value, codec, bytes and reason; small values share a line."""
    small = [row for row in plan if max(row["bytes"], row["dense"]) < SMALL_BYTES]
    large = [row for row in plan if row not in small] if len(small) > 1 else list(plan)
    drops = any(row.get("keep_ratio", 1.0) != 1.0 for row in large)
    names = value_names(large)
    rows: list[dict[str, Any]] = [
        {
            "layer": row.get("layer") or "-",
            "value": name,
            "how": row["how"],
            **({"keep_ratio": row["keep_ratio"]} if drops else {}),
            "bytes": row["bytes"],
            "dense": row["dense"],
            "because": row["because"],
        }
        for row, name in zip(large, names, strict=True)
    ]
    if len(small) > 1:
        rows.append(_sum_row(f"{len(small)} small values", small))
    return [*rows, _sum_row("all", plan)] if plan else []


def value_names(plan: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for the value of each row: its part after the layer's name, or `output`.

    Exporters give values names such as `getitem_12`.  A value without a layer, or one of two with the same name, keeps
    the name that it has in the graphs.
    """
    short = [_short_name(str(row["value"]), str(row.get("layer") or "")) for row in plan]
    places = Counter((row.get("layer"), name) for row, name in zip(plan, short, strict=True))
    return [
        name if places[row.get("layer"), name] == 1 else str(row["value"])
        for row, name in zip(plan, short, strict=True)
    ]


def _short_name(value: str, layer: str) -> str:
    if not layer:
        return value
    return value.removeprefix(layer).lstrip("./") or "output" if value.startswith(layer) else "output"


def _sum_row(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sums = {key: sum(row[key] for row in rows) for key in ("bytes", "dense")}
    return {"layer": name, "value": "", "how": "", **sums, "because": ""}


def memory_table(planned: Mapping[str, Any], measured: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return one row per size with its planned and its measured value; `-` where one of the two is missing."""
    names = [
        name
        for name in dict.fromkeys([*planned, *measured])
        if name not in COUNTS and isinstance(planned.get(name, measured.get(name)), int)
    ]
    sides = {"planned": planned, "measured": measured}
    return [
        {"of": name.replace("_", " "), **{side: _size(sizes.get(name)) for side, sizes in sides.items()}}
        for name in names
    ]


def _size(size: int | None) -> str:
    return "-" if size is None else format_size(size)


def _without_bytes(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures that are no sizes: seconds, steps, the batch."""
    return {name: value for name, value in figures.items() if name in COUNTS or not isinstance(value, int)}


def contents(bundle: Bundle) -> dict[str, Any]:
    """Return a bundle for a program: its path (null for a dry run), and its manifest and report as on disk."""
    path = bundle.path and str(bundle.path)
    return {"bundle": path, "manifest": dict(bundle.manifest), "report": dict(bundle.report)}


def _head(head: Mapping[str, Any] | None) -> str:
    if head is None:
        return "not read"
    axis = "" if head["axis"] is None else f", axis {head['axis']}"
    return f"{head['kind']}, {head['values'].replace('_', ' ')}{axis} of `{head['output']}`"


def _tensor(tensors: list[Mapping[str, Any]]) -> str:
    return "; ".join(f"{tensor['name']} {tensor['dtype']} {tensor['shape']}".replace("'", "") for tensor in tensors)
