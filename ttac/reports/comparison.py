"""Comparison of two graphs: added, removed and rewired nodes, grouped by layer and by the room that made them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ttac.errors import UsageError
from ttac.passes.graph.keys import LAYER, ROOM_KEY
from ttac.passes.graph.shorten import layer_in_name
from ttac.passes.load.checked_file import parse

SOURCE = "source"
"""Name of the room in the report for nodes that no room made."""
SOURCE_FILE = "infer"
"""Stem of the file in a bundle that holds the source model; the comparison leaves it out."""


@dataclass(frozen=True, kw_only=True)
class GraphNode:
    """A node: name, operator, room, layer, and its content: the names of its inputs and its attributes."""

    name: str
    operator: str
    room: str
    layer: str
    content: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """Name and operator; nodes with equal keys are the same node in two graphs."""
        return self.name, self.operator


def compare_graphs(before: Path, after: Path) -> dict[str, Any]:
    """Return a report, in JSON values, of the nodes that differ between `before` and `after`.

    Each path is an `.onnx` file or a folder of such files: a bundle, or a room of `--dump`.  Two nodes are the same if
    their names and operators are equal.  The same node is rewired if it reads other values or has other attributes.
    Raises UsageError or UnsupportedError for a file that is no model.
    """
    old, new = ({node.key: node for node in nodes_of(path)} for path in (before, after))
    removed = [node for key, node in old.items() if key not in new]
    added = [node for key, node in new.items() if key not in old]
    rewired = [node for key, node in new.items() if key in old and node.content != old[key].content]
    changes = [("removed", removed), ("added", added), ("rewired", rewired)]
    rooms = dict.fromkeys(node.room for _, nodes in changes for node in nodes)
    return {
        "before": f"{before}, {len(old)} nodes",
        "after": f"{after}, {len(new)} nodes",
        "unchanged": sum(key in new and node.content == new[key].content for key, node in old.items()),
        "rooms": [
            {"room": room, **{change: sum(node.room == room for node in nodes) for change, nodes in changes}}
            for room in rooms
        ],
        "changes": [row for change, nodes in changes for row in _by_layer(change, nodes)],
    }


def nodes_of(path: Path) -> Iterator[GraphNode]:
    """Yield the nodes of a file, or of all graphs of a folder."""
    for file in _files(path):
        for node in parse(file).graph.node:
            yield _graph_node(node)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.glob("*.onnx") if file.stem != SOURCE_FILE)
    if not files:
        hint = "give an `.onnx` file, a bundle, or one room's folder of `--dump`"
        raise UsageError("the folder holds no graph", where=f"`{path}`", hint=hint)
    return files


def _graph_node(node: onnx.NodeProto) -> GraphNode:
    notes = {entry.key: entry.value for entry in node.metadata_props}
    name = node.name or next((output for output in node.output if output), "?")
    attributes = sorted(str(attribute) for attribute in node.attribute)
    named_room, named_layer = layer_in_name(name, node.op_type)
    room = notes.get(ROOM_KEY) or named_room or SOURCE
    layer = notes.get(LAYER) or (named_layer if room != SOURCE else "") or "-"
    content = (*node.input, *attributes)
    return GraphNode(name=name, operator=node.op_type, room=room, layer=layer, content=content)


def _by_layer(change: str, nodes: Iterable[GraphNode]) -> Iterator[dict[str, Any]]:
    """Yield one row for each room and layer, in the order of the graph."""
    groups: dict[tuple[str, str], list[GraphNode]] = {}
    for node in nodes:
        groups.setdefault((node.room, node.layer), []).append(node)
    for (room, layer), members in groups.items():
        counts = Counter(node.operator for node in members)
        operators = ", ".join(name if count == 1 else f"{count} {name}" for name, count in counts.items())
        names = [node.name for node in members]
        yield {"change": change, "room": room, "layer": layer, "operators": operators, "nodes": names}
