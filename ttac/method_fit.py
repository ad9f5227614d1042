"""The norms that a method can adapt, decided once for `inspect` and `compile`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ttac import methods
from ttac.errors import UnsupportedError
from ttac.spec import Method

if TYPE_CHECKING:
    from ttac.passes.norms.norm_sites import NormSite


def with_statistics(sites: Sequence[NormSite], method: Method) -> list[NormSite]:
    """The batch norms among the sites, for a method that changes only their statistics.

    Raises UnsupportedError with the methods that fit, if the model has no batch norm.
    """
    kept = [site for site in sites if site.kind == "batch"]
    if not kept:
        kinds = ", ".join(sorted({site.kind for site in sites}))
        raise UnsupportedError(
            f"`{method.name}` adapts the statistics of batch norms, and the model has {kinds} norms",
            where=f"`--method {method.name}`",
            hint=f"methods that train scale and bias fit every norm: {methods_that_train()}",
        )
    return kept


def methods_that_train() -> str:
    """The names of the methods that train, as a hint lists them."""
    return ", ".join(f"`{name}`" for name in methods.that_train())
