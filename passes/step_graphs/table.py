"""The graphs that methods name in their programs, besides `forward` and `backward`."""

from __future__ import annotations

from collections.abc import Callable

from ttac.passes.step_graphs.augmentation import augment
from ttac.passes.step_graphs.consistency import both, hold, probe, summed, target
from ttac.passes.step_graphs.context import Context, MethodGraph
from ttac.passes.step_graphs.importance import importance
from ttac.passes.step_graphs.optimizers import update_graphs
from ttac.passes.step_graphs.sample_weights import certain, confirm, reliable, select, uniform
from ttac.passes.step_graphs.sharpness import ascend, descend, restore


def update(context: Context) -> MethodGraph:
    """One step of the optimizer that the settings name; with settings["cr"], with the gradients of both views."""
    gradients = summed(context.gradients) if context.settings.get("cr") else context.gradients
    (model, moved), *large = update_graphs(
        context.parameters, gradients, context.settings, context.opset, anchor=context.anchor
    )
    return MethodGraph(model, tuple(moved), more=tuple(MethodGraph(other, tuple(state)) for other, state in large))


STEPS: dict[str, Callable[[Context], MethodGraph]] = {
    "update": update,
    "reliable": reliable,
    "confirm": confirm,
    "select": select,
    "uniform": uniform,
    "certain": certain,
    "importance": importance,
    "augment": augment,
    "probe": probe,
    "target": target,
    "hold": hold,
    "both": both,
    "ascend": ascend,
    "descend": descend,
    "restore": restore,
}
