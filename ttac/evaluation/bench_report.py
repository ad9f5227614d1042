"""A benchmark as rows of text, as one HTML page, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ttac.evaluation.bench_figures import Benchmark, Figures
from ttac.evaluation.html_report import check_installed, rendered
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
PEER_COLUMN = "{}: / inference, peak"


def columns(benchmark: Benchmark) -> list[str]:
    """Return the names of the columns of `rows`."""
    cache = [CACHE_COLUMN] if _has_cache(benchmark) else []
    return [*COLUMNS, *cache, *(PEER_COLUMN.format(variant) for variant in variants(benchmark))]


def rows(benchmark: Benchmark) -> list[list[str]]:
    """Return one row of text for each method, model and batch."""
    return [_row(each, _has_cache(benchmark), variants(benchmark)) for each in benchmark.figures]


def variants(benchmark: Benchmark) -> list[str]:
    """Return the variants of the peers, each once, in the order of the figures."""
    return list(dict.fromkeys(variant for each in benchmark.figures for variant in each.peers))


def _has_cache(benchmark: Benchmark) -> bool:
    return any(each.cache is not None for each in benchmark.figures)


def page(benchmark: Benchmark) -> str:
    """Return one HTML page that loads nothing else; raises RuntimeMissingError without the extra `eval`."""
    check_installed()
    from ttac.evaluation import bench_plots
    from ttac.evaluation.plots import both

    figures = benchmark.figures
    names = [f"{each.model}, {each.method}, batch {each.batch}" for each in figures]
    ratios = [(each.ratio, *each.spread) for each in figures]
    peers = [each.best("ratio") for each in figures]
    measured = [i for i, each in enumerate(figures) if each.memory and each.inference]
    names_measured, peaks = [names[i] for i in measured], [_peaks(figures[i]) for i in measured]
    return rendered(
        "bench.html.jinja",
        title="Time and memory of a step",
        about=benchmark.about,
        peers=benchmark.peers,
        time=both(lambda width: bench_plots.costs(names, ratios, peers, width)) if names else "",
        memory=both(lambda width: bench_plots.memory(names_measured, peaks, width)) if measured else None,
        columns=columns(benchmark),
        rows=rows(benchmark),
        missing=[(model, method, why.problem) for model, method, why in benchmark.missing],
    )


def markdown(benchmark: Benchmark) -> str:
    """Return the rows as a Markdown table."""
    names = columns(benchmark)
    lines = [names, ["---"] * 2 + ["---:"] * (len(names) - 2), *rows(benchmark)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _peaks(figures: Figures) -> tuple[float, float, float | None]:
    """Return the peak of the step, of inference and of the peer, in bytes."""
    assert figures.memory is not None and figures.inference is not None
    return figures.memory["peak"], figures.inference["peak"], figures.best("peak")


def _row(each: Figures, cache: bool, peers: Sequence[str]) -> list[str]:
    memory, base = each.memory or {}, each.inference or {}
    return [
        each.model,
        each.method,
        str(each.batch),
        f"{each.inference_ms:.1f}",
        f"{each.step_ms:.1f}",
        f"{each.ratio:.2f} ({each.spread[0]:.2f}-{each.spread[1]:.2f})",
        *(_size(value) for value in (memory.get("peak"), memory.get("loaded"), base.get("peak"))),
        _size(each.residuals),
        *([_size(each.cache)] if cache else []),
        *(_peer(each.peers.get(variant)) for variant in peers),
    ]


def _peer(peer: Mapping[str, Any] | None) -> str:
    if peer is None:
        return "-"
    return f"{peer['ratio']:.2f} ({peer['spread'][0]:.2f}-{peer['spread'][1]:.2f}), {_size(peer['peak'])}"


def _size(value: Any) -> str:
    return "-" if value is None else format_size(int(value))
