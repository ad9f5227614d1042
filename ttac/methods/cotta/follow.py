"""The end of a step of CoTTA: the teacher follows the student, and the student forgets at random."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.operators.random_numbers import Numbers, seeded
from ttac.passes.step_graphs import optimizers
from ttac.passes.step_graphs.context import Context, MethodGraph
from ttac.passes.step_graphs.teacher_average import follow
from ttac.spec import SOURCE_SET

SEED = "restore.seed"


def update(context: Context) -> MethodGraph:
    """One step of the optimizer, then the teacher's average (eq. 2) and the random return to the source (eq. 8)."""
    forget = Forget(context)

    def after(op: Builder, flat: ir.Value, members: Sequence[StateTensor]) -> tuple[ir.Value, list[StateTensor]]:
        teacher = follow(op, flat, members, float(context.settings["teacher_decay"]))
        kept, seed = forget(op, flat, members)
        return kept, [*teacher, *seed]

    return optimizers.update(context, after=after)


class Forget:
    """The random return to the source: each number of the student with the probability settings["restored"].

    A step draws one number for each element, vector after vector.  The first graph of the update moves the seed.  Later
    graphs read the moved seed and count back from there.
    """

    def __init__(self, context: Context) -> None:
        self.share, self.initial = float(context.settings["restored"]), seeded(int(context.settings["seed"]) + 1)
        self.total, self.taken = sum(tensor.initial.size for tensor in context.parameters), 0
        self.graph: ir.Graph | None = None
        self.numbers: Numbers | None = None

    def __call__(
        self, op: Builder, flat: ir.Value, members: Sequence[StateTensor]
    ) -> tuple[ir.Value, list[StateTensor]]:
        """The vector `flat` of the `members` after the return, and the seed if it moves here."""
        if not self.share:
            return flat, []
        seed, size = self._begun(op), sum(tensor.initial.size for tensor in members)
        assert self.numbers is not None
        chosen = op.Less(self.numbers.many(self.taken, size), self.share)
        self.taken += size
        sources = [state_input(op.graph, f"{SOURCE_SET}.{t.name}", t.initial) for t in members]
        return op.Where(chosen, optimizers.flatten(op, sources), flat), seed

    def _begun(self, op: Builder) -> list[StateTensor]:
        """The seed that moves in the first graph; nothing in graphs that are begun or that follow."""
        if self.graph is op.graph:
            return []
        first, self.graph = self.graph is None, op.graph
        seed = state_input(op.graph, SEED if first else f"{SEED}.next", self.initial)
        self.numbers = Numbers(op, seed)
        if not first:
            self.taken -= self.total if self.taken > 0 else 0
            return []
        following = self.numbers.following(self.total)
        return [StateTensor(name=SEED, role="counter", initial=self.initial, value=seed, next=following)]
