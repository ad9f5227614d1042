"""The last samples of the stream, which FOA-I adapts to (Niu et al., arXiv:2404.01650)."""

from __future__ import annotations

from ttac.errors import UnsupportedError
from ttac.methods.foa_i import REMEMBERED
from ttac.passes.graph.builder import Builder
from ttac.passes.step_graphs.answer import refuse_other_answers
from ttac.passes.step_graphs.context import Context, MethodGraph, Subject
from ttac.passes.step_graphs.window import WINDOW, window, windowed


def check(subject: Subject) -> None:
    """Raise UnsupportedError for a model with several inputs, of which the window keeps one, and for other outputs."""
    refuse_other_answers(subject, "`foa-i` measures the entropy of one class")
    inputs = windowed(subject.model.graph.inputs)
    if len(inputs) > 1:
        raise UnsupportedError(
            f"the window keeps one input, and the model has {len(inputs)}",
            where=", ".join(f"`{value.name}`" for value in inputs),
            hint="hold the others, `--hold NAME=VALUE`, or take `--method foa` with a batch",
        )


def remember(context: Context) -> MethodGraph:
    """The window of the last samples as state and as `remembered`; `window.full` is 1 if all of them are new."""
    assert context.x is not None
    graph = window([context.x], int(context.settings["interval"]), context.opset)
    after = graph.state[0].next
    assert after is not None
    op = Builder(graph.model.graph, WINDOW, context.opset)
    with op.at(WINDOW):
        graph.model.graph.outputs.append(op.Identity(after, name=REMEMBERED))
    return graph
