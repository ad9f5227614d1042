"""What became of a graph: the nodes that were added, removed or rewired, by the room that made them and by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ttac.errors import UsageError
from ttac.passes.graph.keys import LAYER, ROOM
from ttac.passes.graph.shorten import told_by_name
from ttac.passes.load.checked_file import parse

SOURCE = "source"
"""The room of nodes that no room made."""
PLAIN = "infer"
"""The graph of a bundle that is the source model over again."""


@dataclass(frozen=True)
class Placed:
    """A node: its name, operator, room and layer, and what it reads and how it is set."""

    name: str
    operator: str
    room: str
    layer: str
    content: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same node in another graph."""
        return self.name, self.operator


def compare_graphs(before: Path, after: Path) -> dict[str, Any]:
    """A report of what `after` has that `before` has not, and the reverse, that JSON can hold.

    Each is an `.onnx` file or a folder of them: a bundle, or a room of `--dump`.  Nodes are the same if name and
    operator are; such nodes are rewired if they read other values or have other attributes.  Raises UsageError or
    UnsupportedError for what is no model.
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


def nodes_of(path: Path) -> Iterator[Placed]:
    """The nodes of a file, or of all graphs of a folder."""
    for file in _files(path):
        for node in parse(file).graph.node:
            yield _placed(node)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.glob("*.onnx") if file.stem != PLAIN)
    if not files:
        hint = "give an `.onnx` file, a bundle, or one room's folder of `--dump`"
        raise UsageError("the folder holds no graph", where=f"`{path}`", hint=hint)
    return files


def _placed(node: onnx.NodeProto) -> Placed:
    notes = {entry.key: entry.value for entry in node.metadata_props}
    name = node.name or next((output for output in node.output if output), "?")
    attributes = sorted(str(attribute) for attribute in node.attribute)
    told = told_by_name(name, node.op_type)
    room = notes.get(ROOM) or told[0] or SOURCE
    layer = notes.get(LAYER) or (told[1] if room != SOURCE else "") or "-"
    return Placed(name, node.op_type, room, layer, (*node.input, *attributes))


def _by_layer(change: str, nodes: Iterable[Placed]) -> Iterator[dict[str, Any]]:
    """One row for each room and layer, in the order of the graph."""
    groups: dict[tuple[str, str], list[Placed]] = {}
    for node in nodes:
        groups.setdefault((node.room, node.layer), []).append(node)
    for (room, layer), members in groups.items():
        counts = Counter(node.operator for node in members)
        operators = ", ".join(name if count == 1 else f"{count} {name}" for name, count in counts.items())
        names = [node.name for node in members]
        yield {"change": change, "room": room, "layer": layer, "operators": operators, "nodes": names}
