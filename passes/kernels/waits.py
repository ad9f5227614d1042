"""Which values a value waits for, where nodes that are still to be inserted read further values."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir


class Waits:
    """The values of one graph, and the further inputs of the nodes that will make some of them."""

    def __init__(self) -> None:
        self._further: dict[ir.Value, list[ir.Value]] = {}

    def add(self, results: Sequence[ir.Value], further: ir.Value) -> None:
        """From now on, `results` come from a node that also reads `further`."""
        for value in results:
            self._further.setdefault(value, []).append(further)

    def any_of(self, value: ir.Value, results: Collection[ir.Value]) -> bool:
        """Whether `value` is one of `results`, or is computed from one of them in its graph."""
        pending, seen = [value], {value}
        while pending:
            found = pending.pop()
            if found in results:
                return True
            node = found.producer()
            inputs = [v for v in node.inputs if v is not None] if node is not None else []
            fresh = [v for v in [*inputs, *self._further.get(found, ())] if v not in seen]
            seen.update(fresh)
            pending += fresh
        return False
