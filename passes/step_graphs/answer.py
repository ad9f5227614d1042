"""A prediction that a method computes, in the place of the model's."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.builder import Builder
from ttac.passes.normalise.normal_form import batch_first
from ttac.passes.step_graphs.context import Subject
from ttac.passes.step_graphs.linear_head import class_head
from ttac.spec import Word

ANSWER = "answer"


def answers_apart(program: Sequence[Word]) -> bool:
    """Whether a step returns its own answer, and runs the forward in some steps only."""
    return program[-1]["return"] == ANSWER and not any(word.get("run") == "forward" for word in program)


def refuse_other_answers(subject: Subject, purpose: str) -> None:
    """Raise UnsupportedError unless the output predicts one class of each sample, with the samples on the first axis.

    `purpose` begins the message, as in "`NAME` averages predictions".
    """
    class_head(subject, purpose)
    output = str(subject.model.graph.outputs[0].name)
    if output.endswith(batch_first("")):
        raise UnsupportedError(
            f"{purpose}, and the samples of this output are not on the first axis",
            where=f"output `{output.removesuffix(batch_first(''))}`",
            hint="export the model with the samples first; `ttac inspect` lists the methods that fit",
        )


def in_output_form(op: Builder, scores: ir.Value, head: Head) -> ir.Value:
    """The scores [N, classes] as the model's output: scores, probabilities or their logarithms."""
    forms = {"probabilities": op.Softmax, "log_probabilities": op.LogSoftmax}
    form = forms.get(head.values)
    return form(scores, axis=1) if form else op.Identity(scores)
