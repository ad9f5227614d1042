"""Sizes of the code, read from its syntax trees: length of files and functions, arguments, names, records."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.import_graph import FOLDERS, ROOT

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Measured:
    """One thing of the code with its size; `place` is `folder/file.py::name`."""

    place: str
    size: int


def sources() -> list[Path]:
    """The files of the package."""
    return python_files(*FOLDERS)


def tests() -> list[Path]:
    """The files of the test suite."""
    return python_files("tests")


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def place(path: Path, name: str = "") -> str:
    relative = path.relative_to(ROOT).as_posix()
    return f"{relative}::{name}" if name else relative


def file_lines(paths: list[Path]) -> list[Measured]:
    """Lines of each file."""
    return [Measured(place(path), len(path.read_text(encoding="utf-8").splitlines())) for path in paths]


def functions(path: Path) -> Iterator[tuple[str, Function]]:
    """Qualified name and node of each function and method."""
    return inner_functions(tree(path), "")


def inner_functions(parent: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Function):
            yield prefix + node.name, node
        name = getattr(node, "name", "") if isinstance(node, Function | ast.ClassDef) else ""
        yield from inner_functions(node, f"{prefix}{name}." if name else prefix)


def function_lines(paths: list[Path]) -> list[Measured]:
    """Lines of each function: signature, docstring and body, without decorators."""
    return [
        Measured(place(path, name), (node.end_lineno or node.lineno) - node.lineno + 1)
        for path in paths
        for name, node in functions(path)
    ]


def function_arguments(paths: list[Path]) -> list[Measured]:
    """Number of arguments of each function, without `self` and `cls`."""
    return [Measured(place(path, name), arguments(node)) for path in paths for name, node in functions(path)]


def arguments(node: Function) -> int:
    names = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    stars = (node.args.vararg is not None) + (node.args.kwarg is not None)
    return len(names) - (names[:1] in (["self"], ["cls"])) + stars


def repeated_names() -> list[str]:
    """File names that stand twice in the package; `__init__.py` may."""
    seen = Counter(path.name for path in sources() if path.name != "__init__.py")
    return sorted(name for name, times in seen.items() if times > 1)


def test_names() -> list[Measured]:
    """Length of the name of each test function."""
    return [
        Measured(place(path, name), len(name.rpartition(".")[2]))
        for path in tests()
        for name, _ in functions(path)
        if name.rpartition(".")[2].startswith("test_")
    ]


def positional_records() -> list[Measured]:
    """Number of fields of each dataclass whose fields may be given by position.

    Python 3.9, for which the device half is written, has no `kw_only`.  There, the largest number of fields that a call
    gives by position counts.
    """
    return [
        Measured(
            place(path, node.name), given_by_position().get(node.name, 0) if is_for_devices(path) else fields(node)
        )
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and is_positional_record(node)
    ]


def is_for_devices(path: Path) -> bool:
    return (ROOT / "runtime") in path.parents


@cache
def given_by_position() -> dict[str, int]:
    """Name of each function that the sources call -> largest number of positional arguments of a call."""
    most: dict[str, int] = {}
    for call in (node for path in sources() for node in ast.walk(tree(path)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        most[name] = max(most.get(name, 0), len(call.args))
    return most


def is_positional_record(node: ast.ClassDef) -> bool:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any("dataclass" in text and "kw_only=True" not in text for text in decorators)


def fields(node: ast.ClassDef) -> int:
    found = 0
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and ast.unparse(line.annotation) == "KW_ONLY":
            return found
        found += isinstance(line, ast.AnnAssign) and not ast.unparse(line.annotation).startswith("ClassVar")
    return found
