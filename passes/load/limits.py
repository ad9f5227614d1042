"""Refuse model files that would expand without bound: recursive or doubling functions, and deep subgraphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx

from ttac.errors import UnsupportedError

MOST_NODES = 500_000
"""Nodes that a model may have after its functions are inlined; the largest published networks have some 10,000."""
MOST_COPIES = 2000
"""Calls of one function, counted through other functions: the time that unique names take grows with their square."""
DEEPEST = 16
"""Levels of subgraphs inside each other."""
Key = tuple[str, str, str]


def refuse_unbounded(proto: onnx.ModelProto, path: Path) -> None:
    """Raise UnsupportedError where inlining the functions of `proto` would not end, or would exceed `MOST_NODES`.

    Counts without inlining, in time linear in the size of the file.
    """
    functions: dict[Key, onnx.FunctionProto] = {}
    for function in proto.functions:
        functions[_key(function.domain, function.name, function.overload)] = function
    counted: dict[Key, int] = {}
    for key in functions:
        _count_function(key, functions, counted, path)
    total = _count_nodes(proto.graph.node, functions, counted, path, depth=0)
    if total > MOST_NODES:
        raise _refusal(f"its functions expand to more than {MOST_NODES:,} nodes", path)
    copies = Counter(call for call in _calls(proto.graph.node, path) if call in functions)
    for key in reversed(list(counted)):  # a function comes after those that it calls
        for call in _calls(functions[key].node, path):
            copies[call] += copies[key] if call in functions else 0
    most = max(copies, key=lambda key: copies[key], default=None)
    if most is not None and copies[most] > MOST_COPIES:
        raise _refusal(f"its function `{most[1]}` is called {copies[most]:,} times, more than {MOST_COPIES:,}", path)


def _count_function(start: Key, functions: dict[Key, onnx.FunctionProto], counted: dict[Key, int], path: Path) -> None:
    """Fill `counted` with the nodes of `start` and of every function below, deepest first, without recursion."""
    pending, open_calls = [start], set[Key]()
    while pending:
        key = pending[-1]
        if key in counted:
            pending.pop()
            open_calls.discard(key)
            continue
        calls = [call for call in _calls(functions[key].node, path) if call in functions]
        missing = [call for call in calls if call not in counted]
        if not missing:
            counted[key] = _count_nodes(functions[key].node, functions, counted, path, depth=0)
            continue
        open_calls.add(key)
        if any(call in open_calls for call in missing):
            raise _refusal(f"its function `{key[1]}` calls itself", path)
        pending += missing


def _count_nodes(
    nodes: Iterable[onnx.NodeProto],
    functions: dict[Key, onnx.FunctionProto],
    counted: dict[Key, int],
    path: Path,
    *,
    depth: int,
) -> int:
    """Nodes after inlining, capped just above `MOST_NODES`."""
    total = 0
    for node in nodes:
        total += counted.get(_key(node.domain, node.op_type, node.overload), 1)
        for graph in _subgraphs(node, path, depth):
            total += _count_nodes(graph.node, functions, counted, path, depth=depth + 1)
        if total > MOST_NODES:
            return MOST_NODES + 1
    return total


def _calls(nodes: Iterable[onnx.NodeProto], path: Path, depth: int = 0) -> list[Key]:
    """Keys of the operators that the nodes and their subgraphs use."""
    keys: list[Key] = []
    for node in nodes:
        keys.append(_key(node.domain, node.op_type, node.overload))
        for graph in _subgraphs(node, path, depth):
            keys += _calls(graph.node, path, depth + 1)
    return keys


def _subgraphs(node: onnx.NodeProto, path: Path, depth: int) -> list[onnx.GraphProto]:
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    graphs += [graph for attribute in node.attribute for graph in attribute.graphs]
    if graphs and depth >= DEEPEST:
        raise _refusal(f"its subgraphs are more than {DEEPEST} levels deep", path)
    return graphs


def _key(domain: str, name: str, overload: str) -> Key:
    return "" if domain == "ai.onnx" else domain, name, overload


def _refusal(problem: str, path: Path) -> UnsupportedError:
    return UnsupportedError(f"the model is refused: {problem}", where=f"`{path}`", hint="export the model again")
