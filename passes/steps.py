"""The graphs that methods name in their programs, besides `forward` and `backward`."""

from __future__ import annotations

from collections.abc import Callable

from ttac.passes.importance import importance
from ttac.passes.method_graphs import Context, MethodGraph
from ttac.passes.optimizers import update_graph
from ttac.passes.selection import certain, confirm, reliable, select, uniform
from ttac.passes.sharpness import ascend, descend, restore


def update(context: Context) -> MethodGraph:
    """One step of the optimizer that the settings name."""
    model, moved = update_graph(
        context.parameters, context.gradients, context.settings, context.opset, anchor=context.anchor
    )
    return MethodGraph(model, tuple(moved))


STEPS: dict[str, Callable[[Context], MethodGraph]] = {
    "update": update,
    "reliable": reliable,
    "confirm": confirm,
    "select": select,
    "uniform": uniform,
    "certain": certain,
    "importance": importance,
    "ascend": ascend,
    "descend": descend,
    "restore": restore,
}
