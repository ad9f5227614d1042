"""The norms that a method can adapt, decided once for `inspect` and `compile`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from ttac import methods
from ttac.errors import UnsupportedError
from ttac.passes.differentiate.reverse_walk import nodes_between
from ttac.passes.normalise.normal_form import batch_first
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


def refuse_unread(model: ir.Model, sites: Sequence[NormSite], further: Sequence[str]) -> None:
    """Raise UnsupportedError if no site lies in front of an output that a loss reads.

    The loss reads the first output of `model` and the outputs named `further`.
    """
    behind = {str(y.name).removesuffix(batch_first("")): _behind(model, sites, y) for y in model.graph.outputs}
    learned = [next(iter(behind)), *further]
    if any(behind[name] for name in learned):
        return
    others = [name for name in behind if behind[name]]
    raise UnsupportedError(
        f"none of the norms lies in front of the output `{learned[0]}`, from which the loss learns",
        where=", ".join(f"`{site.name}`" for site in sites[:5]),
        hint=(f"`--logits {others[0]}` learns from an output behind a norm; " if others else "")
        + "or take a method without a loss (`ttac inspect` lists those that fit)",
    )


def _behind(model: ir.Model, sites: Sequence[NormSite], output: ir.Value) -> bool:
    """Whether `output` depends on a site, so that a gradient of `output` reaches the site."""
    starts = [site.y for site in sites]
    return any(y is output for y in starts) or bool(nodes_between(model.graph, starts, output))


def methods_that_train() -> str:
    """The names of the methods that train, as a hint lists them."""
    return ", ".join(f"`{name}`" for name in methods.that_train())
