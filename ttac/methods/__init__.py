"""The methods: a file or folder each with one value `METHOD`, and the methods of other installed packages.

A new file `ttac/methods/<name>.py` is a new method; a hyphen of the name is an underscore of the file.  A package
elsewhere adds a method by an entry point of the group `ttac.methods`.
"""

from __future__ import annotations

import importlib
import pkgutil

from ttac import entry_points
from ttac.errors import UsageError
from ttac.spec import Method
from ttac.suggest import did_you_mean

DEFAULT = "tent"
"""The method of a compile that names none."""
COMPARED = ("source", "bn", DEFAULT)
"""The methods that an evaluation and the demo compare by default."""


def names() -> list[str]:
    """The names of all methods, in alphabetical order; raises UsageError if two methods have one name."""
    built_in = _built_in()
    return sorted({*built_in, *entry_points.installed(entry_points.METHODS, built_in)})


def that_train() -> list[str]:
    """The names of the methods that train by gradients: they fit norms of every kind."""
    return [name for name in names() if find(name).by_gradients]


def find(name: str) -> Method:
    """The method called `name`; raises UsageError when there is none."""
    built_in = _built_in()
    points = entry_points.installed(entry_points.METHODS, built_in)
    if name in points:
        return _of_package(name, entry_points.load(points[name], Method))
    if name not in built_in:
        hint = did_you_mean(name, names()) + " (`ttac methods` lists them)"
        raise UsageError(f"there is no method `{name}`", hint=hint)
    method: Method = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").METHOD
    return method


def _built_in() -> list[str]:
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)]


def _of_package(name: str, method: Method) -> Method:
    if method.name != name:
        raise UsageError(f"the entry point `{name}` leads to the method `{method.name}`", hint="give both one name")
    return method
