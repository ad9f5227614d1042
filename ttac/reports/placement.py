"""The execution provider that runs each node of a bundle, read from the engine's profile of one step."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ttac.reports.doctor import Check
from ttac.reports.measure import random_feeds
from ttac.runtime import load
from ttac.runtime.engine import EngineSettings, chosen
from ttac.runtime.providers import CPU, Provider, provider_name

OPERATORS = 6
"""Most operators that a line names."""


def placements(bundle: Path, providers: Sequence[Provider]) -> dict[str, Counter[tuple[str, str]]]:
    """Return graph -> (provider, operator) -> number of nodes, for one step on random samples.

    A provider may merge several nodes into one.  Raises the errors of `ttac.load` and of `step`.
    """
    with tempfile.TemporaryDirectory() as folder:
        _profiled_step(bundle, EngineSettings(providers=tuple(chosen(providers)), profile=folder))
        return {graph: _nodes(path) for graph, path in _profiles(Path(folder))}


def _profiled_step(bundle: Path, settings: EngineSettings) -> None:
    """Run one step; the engine writes the profiles when the sessions end."""
    adapter = load(bundle, settings=settings, form="portable")
    adapter.step(random_feeds(adapter, adapter.batch))


def _profiles(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        yield path.name.split("@")[0], path


def _nodes(path: Path) -> Counter[tuple[str, str]]:
    nodes = {
        event["name"]: (str(event["args"].get("provider", "")), str(event["args"].get("op_name", "")))
        for event in json.loads(path.read_text())
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    }
    return Counter(nodes.values())


def placement_checks(bundle: Path, providers: Sequence[Provider]) -> list[Check]:
    """Return a line for each graph of a step: the nodes of each provider, and the operators that fall to the CPU."""
    first = provider_name(chosen(providers)[0])
    return [_check(graph, nodes, first) for graph, nodes in placements(bundle, providers).items()]


def _check(graph: str, nodes: Counter[tuple[str, str]], first: str) -> Check:
    by_provider: Counter[str] = Counter()
    on_cpu: Counter[str] = Counter()
    for (provider, operator), count in nodes.items():
        by_provider[provider] += count
        if provider == CPU:
            on_cpu[operator] += count
    found = ", ".join(f"{count} nodes on {provider}" for provider, count in sorted(by_provider.items()))
    if first == CPU or not on_cpu:
        return Check(part=graph, verdict="info", found=found)
    names = ", ".join(f"{count} {name}" for name, count in on_cpu.most_common(OPERATORS))
    more = ", ..." if len(on_cpu) > OPERATORS else ""
    return Check(part=graph, verdict="info", found=found, note=f"on the CPU: {names}{more}")
