"""The order of the rooms, and the arrows of the import graph: `tests/documents` and `docs/architecture.svg` read both."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

FOLDERS = {"ttac": "ttac", "passes": "ttac.passes", "runtime": "ttac.runtime"}
"""Top folder -> the package that it is installed as."""

DOOR = "ttac"
"""The package `ttac` itself; no module imports it."""

PIECES = "pieces"
"""The room of every top-level module that `ROOMS` does not list."""

ROOMS: tuple[tuple[str, ...], ...] = (
    ("ttac.errors", "ttac.suggest", "ttac.sizes", "ttac.child_process", "ttac.garbage"),
    ("ttac.runtime",),
    ("ttac.spec", "ttac.settings", "ttac.shared_options", "ttac.entry_points"),
    ("ttac.samples",),
    ("ttac.passes.graph",),
    ("ttac.passes.operators",),
    ("ttac.passes.load",),
    ("ttac.passes.normalise",),
    ("ttac.passes.norms",),
    ("ttac.passes.quantize",),
    ("ttac.passes.adapt",),
    ("ttac.passes.differentiate",),
    ("ttac.passes.plan",),
    ("ttac.passes.partition",),
    ("ttac.passes.lower",),
    ("ttac.passes.kernels",),
    ("ttac.passes.blocked",),
    ("ttac.passes.step_graphs",),
    ("ttac.passes.verify",),
    ("ttac.targets",),
    ("ttac.methods",),
    ("ttac.options", "ttac.method_fit"),
    ("ttac.reports",),
    (PIECES,),
    ("ttac.pipeline",),
    ("ttac.bake", "ttac.bake_comparison"),
    ("ttac.evaluation",),
    ("ttac.demo",),
    ("ttac.cli", "ttac.__main__"),
)
"""The rooms, first to last.  A module imports modules of its own room and of the rooms before it."""


@dataclass(frozen=True, order=True)
class Arrow:
    """`importer` imports `imported`; `typing` where only a type checker follows it."""

    importer: str
    imported: str
    typing: bool = False

    def __str__(self) -> str:
        return f"{self.importer} -> {self.imported}"


def files() -> dict[str, Path]:
    """Module name -> file, of the whole package."""
    return {module_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}


def module_name(path: Path) -> str:
    folder, *parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *(part for part in parts if part != "__init__")])


def room(module: str) -> int:
    """Place of the module's room in `ROOMS`."""
    for place, names in enumerate(ROOMS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return place
    return ROOMS.index((PIECES,))


def arrows() -> list[Arrow]:
    """Every import of a module of the package by another, sorted."""
    known = files()
    found = {arrow for module, path in known.items() for arrow in arrows_of(module, path, set(known))}
    return sorted(found)


def arrows_of(module: str, path: Path, known: set[str]) -> Iterator[Arrow]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {id(node) for block in ast.walk(tree) if is_typing(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        for imported in imports(node, known):
            if imported != module:
                yield Arrow(module, imported, id(node) in typing)


def is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node: ast.AST, known: set[str]) -> Iterator[str]:
    """Modules of the package that an import statement names; of `from a import b`, `a.b` where that is a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom) and node.module in known | {""} and node.module:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in known else node.module


def backward(found: list[Arrow]) -> list[Arrow]:
    """The arrows from a room to a later room, and every arrow to the door.  The door itself imports any room."""
    inside = [arrow for arrow in found if arrow.importer != DOOR]
    return [arrow for arrow in inside if arrow.imported == DOOR or room(arrow.imported) > room(arrow.importer)]


def circles(found: list[Arrow]) -> list[list[str]]:
    """Groups of modules that import one another in a circle; types that only a checker follows do not close one."""
    import networkx as nx

    graph = nx.DiGraph((arrow.importer, arrow.imported) for arrow in found if not arrow.typing)
    return sorted(sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1)
