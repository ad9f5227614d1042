"""One graph of the bundle in a session, checked against the manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ttac.errors import VerificationError
from ttac.runtime.engine import EngineSettings, Port, Session
from ttac.runtime.json_values import HINT
from ttac.runtime.packed_graph import PackedGraph
from ttac.runtime.records import GraphSpec, Manifest, TensorSpec


class LoadedGraph:
    """A graph in a session, with the manifest's table of its outputs.

    Raises VerificationError if an input or output of the graph does not fit the manifest.
    """

    def __init__(
        self, graph: Path | PackedGraph, spec: GraphSpec, manifest: Manifest, settings: EngineSettings
    ) -> None:
        level = spec.optimization or settings.optimization
        self.session = Session(graph, replace(settings, optimization=level))
        self.inputs, self.outputs = tuple(self.session.inputs), tuple(self.session.outputs)
        self.state, self.stats = spec.state, spec.stats
        self.run = self.session.run
        declared = {**manifest.state, **{spec.name: spec for spec in manifest.inputs}}
        for name, port in self.session.inputs.items():
            if name in declared and not _fits(port, declared[name]):
                _refuse_port(port, declared[name], spec)
        for name in (*spec.state, *spec.stats):
            if name not in self.session.outputs:
                raise VerificationError(
                    f"the manifest reads output `{name}`, which the graph lacks", where=f"`{spec.file}`", hint=HINT
                )


def _fits(port: Port, spec: TensorSpec) -> bool:
    """Whether dtype and shape agree; a symbol in the graph agrees with any size."""
    sizes = zip(port.shape, spec.shape)
    return (
        port.dtype == spec.dtype
        and len(port.shape) == len(spec.shape)
        and all(not isinstance(size, int) or size == declared for size, declared in sizes)
    )


def _refuse_port(port: Port, spec: TensorSpec, graph: GraphSpec) -> None:
    shape = str(list(spec.shape)).replace("'", "")
    raise VerificationError(
        f"the graph takes `{port.name}` as {port.dtype} {list(port.shape)}, the manifest has {spec.dtype} {shape}",
        where=f"`{graph.file}`",
        hint=HINT,
    )
