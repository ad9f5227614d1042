"""Planned and measured memory of a step, and the check against the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ttac.bundle_content import BundleContent
from ttac.errors import BudgetError
from ttac.passes.graph.keys import LIKELY_BYTES, SAMPLE_BYTES
from ttac.passes.plan.decisions import Decision
from ttac.passes.plan.liveness import peak
from ttac.passes.plan.published_cache import published_cache
from ttac.sizes import format_size

MARGIN = 1.05
"""Factor by which the measured peak may differ from one run to the next."""
BUDGET_OPTION = "--memory-budget"


@dataclass(frozen=True, kw_only=True)
class OverBudget:
    """A step that needs more memory than it may use.

    Attributes:
        needs, allowed: bytes.
        limit: name of the limit, for messages.
        largest: the largest residuals.
        batch: samples of the step.
    """

    needs: int
    allowed: int
    limit: str
    largest: tuple[Decision, ...]
    batch: int

    def error(self) -> BudgetError:
        """The refusal, with the residuals that need most and a way out."""
        hint = f"lower `--batch` (now {self.batch}), or adapt fewer sites with `--train`"
        if self.limit == BUDGET_OPTION:
            least = format_size(MARGIN * self.needs).replace(" ", "")
            hint += f"; the least budget that works is about `{BUDGET_OPTION} {least}`"
        return BudgetError(
            f"a step needs {format_size(self.needs)}, the {self.limit} is {format_size(self.allowed)}",
            where="\n     ".join(f"{row.value}: {format_size(row.bytes)}, {row.how}" for row in self.largest),
            hint=hint,
        )


def planned_memory(content: BundleContent) -> dict[str, Any]:
    """The planned figures in bytes: `planned` and `published_cache`, for report and manifest.

    `planned` holds the residuals, the residuals had all been kept dense, and the highest moment of a step.  If the data
    decide how much of a layer's input is kept, these are upper bounds, and `usual` is the highest moment with the usual
    keep ratios.  `published_cache` counts the cache as papers do.
    """
    plan = content.plan
    counted = published_cache(content.graphs["infer"].graph, content.state.sites).as_dict(content.state.options.batch)
    sizes = {"residuals": plan.bytes, "dense": plan.dense, "peak": planned_peak(content), "batch": plan.batch}
    if plan.keep_ratios is not None and plan.keep_ratios.moves:
        sizes["usual"] = planned_peak(content, sizes=LIKELY_BYTES)
    return {"planned": sizes, "published_cache": counted}


def planned_peak(
    content: BundleContent, spelled: Mapping[str, ir.Model] | None = None, sizes: str = SAMPLE_BYTES
) -> int:
    """The highest moment of a step in bytes, where `spelled` are graphs of another form in place of the portable ones.

    `sizes` is as in `ttac.passes.plan.liveness.peak`.
    """
    order = ["forward", *content.stages("backward"), *content.stages("update")]
    return peak({**content.graphs, **(spelled or {})}, order, content.plan.batch, sizes).bytes


def over_budget(content: BundleContent, memory: Mapping[str, Any]) -> OverBudget | None:
    """The refusal of a step above `--memory-budget`, or above the memory of the target; None if the step fits.

    Without a measured peak, the planned residuals are its lower bound.  If the data decide how much is kept, the budget
    must also hold for the upper bound.
    """
    options, plan = content.state.options, content.plan
    needs = memory["measured"].get("peak", plan.bytes)
    if options.memory_budget is None:
        needs += memory["measured"].get("loaded", 0)
        allowed, limit = options.target.memory, f"memory of target `{options.target.name}`"
    else:
        if options.method.keep:
            needs = max(needs, memory["planned"].get("peak", 0))
        allowed, limit = options.memory_budget, BUDGET_OPTION
    if needs <= allowed:
        return None
    largest = tuple(plan.largest())
    return OverBudget(needs=needs, allowed=allowed, limit=limit, largest=largest, batch=options.batch)
