"""What a benchmark found, as rows of text, as one HTML page, and as Markdown."""

from __future__ import annotations

from typing import Any

from ttac.evaluation.bench import Benchmark, Figures
from ttac.evaluation.report import rendered
from ttac.sizes import format_size

COLUMNS = (
    "model",
    "method",
    "batch",
    "inference ms",
    "step ms",
    "step / inference",
    "peak",
    "loaded",
    "inference peak",
    "residuals",
)
CACHE_COLUMN = "published cache"
PEER_COLUMNS = ("{} / inference", "{} peak")


def columns(found: Benchmark) -> list[str]:
    """Names of the columns of `rows`."""
    cache = [CACHE_COLUMN] if _has_cache(found) else []
    return [*COLUMNS, *cache, *(name.format(found.peers) for name in PEER_COLUMNS if found.peers)]


def rows(found: Benchmark) -> list[list[str]]:
    """One row of text for each figure."""
    return [_row(each, _has_cache(found), bool(found.peers)) for each in found.figures]


def _has_cache(found: Benchmark) -> bool:
    return any(each.cache is not None for each in found.figures)


def page(found: Benchmark) -> str:
    """The page; raises RuntimeMissingError without the extra `eval`."""
    from ttac.evaluation import plots
    from ttac.evaluation.report import check_installed

    check_installed()
    names = [f"{each.model}, {each.method}, batch {each.batch}" for each in found.figures]
    ratios = [(each.ratio, *each.spread) for each in found.figures]
    elsewhere = [_peer(each, "ratio") for each in found.figures]
    told = [i for i, each in enumerate(found.figures) if each.memory and each.inference]
    return rendered(
        "bench.html.jinja",
        title="What a step costs",
        about=found.about,
        peers=found.peers,
        time=plots.costs(names, ratios, elsewhere) if names else "",
        memory=plots.memory([names[i] for i in told], [_bytes(found.figures[i]) for i in told]) if told else "",
        columns=columns(found),
        rows=rows(found),
        missing=[(model, method, why.what) for model, method, why in found.missing],
    )


def markdown(found: Benchmark) -> str:
    """The rows as a Markdown table."""
    names = columns(found)
    lines = [names, ["---"] * 2 + ["---:"] * (len(names) - 2), *rows(found)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _bytes(figures: Figures) -> tuple[float, float, float | None]:
    """Peak of the step, of plain inference and of the peer."""
    assert figures.memory is not None and figures.inference is not None
    return figures.memory["peak"], figures.inference["peak"], _peer(figures, "peak")


def _peer(figures: Figures, name: str) -> float | None:
    return None if figures.peer is None else figures.peer[name]


def _row(each: Figures, cache: bool, peers: bool) -> list[str]:
    memory, base = each.memory or {}, each.inference or {}
    row = [
        each.model,
        each.method,
        str(each.batch),
        f"{each.inference_ms:.1f}",
        f"{each.step_ms:.1f}",
        f"{each.ratio:.2f} ({each.spread[0]:.2f}-{each.spread[1]:.2f})",
        *(_size(value) for value in (memory.get("peak"), memory.get("loaded"), base.get("peak"))),
        _size(each.residuals),
        *([_size(each.cache)] if cache else []),
    ]
    if not peers:
        return row
    peer = each.peer or {}
    ratio = peer.get("ratio")
    return [*row, "-" if ratio is None else f"{ratio:.2f}", _size(peer.get("peak"))]


def _size(value: Any) -> str:
    return "-" if value is None else format_size(int(value))
