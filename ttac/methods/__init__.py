"""The methods: one file each, holding one value `METHOD`.

Nothing is registered: a new file `ttac/methods/<name>.py` is a new method.
"""

from __future__ import annotations

import importlib
import pkgutil

from ttac.errors import UsageError
from ttac.spec import Method
from ttac.suggest import did_you_mean

DEFAULT = "tent"
"""The method of a compile that names none."""


def names() -> list[str]:
    """The names of all methods, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def that_train() -> list[str]:
    """The names of the methods that train scale and bias of norms: they fit norms of every kind."""
    return [name for name in names() if find(name).trains]


def find(name: str) -> Method:
    """The method called `name`; raises UsageError when there is none."""
    if name not in names():
        hint = did_you_mean(name, names()) + " (`ttac methods` lists them)"
        raise UsageError(f"there is no method `{name}`", hint=hint)
    method: Method = importlib.import_module(f"{__name__}.{name}").METHOD
    return method
