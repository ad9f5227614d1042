"""The last rooms: write the bundle to a staging folder, verify and measure it, and move it to its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ttac.bundle_writer import Compiled, manifest, report, write_files
from ttac.memory_check import OverBudget, over_budget, planned_memory
from ttac.passes.differentiate.joint import Joint
from ttac.passes.verify.compare import Differences
from ttac.program_writer import Word, programs, unguarded
from ttac.reports.measure import measure
from ttac.reports.progress import Rooms
from ttac.runtime.bundle import Bundle, place, write_manifest
from ttac.sites import Samples
from ttac.staging import staging
from ttac.verification import verify


@dataclass(frozen=True)
class Finished:
    """A bundle in its place."""

    bundle: Bundle


def finish(compiled: Compiled, source: ir.Model, joint: Joint, samples: Samples, rooms: Rooms) -> Finished | OverBudget:
    """Write, verify and measure the bundle, and move it into place; a bundle over the budget is not kept.

    Raises VerificationError if a difference is above its bound.  On any error nothing is left at the output.
    """
    options = compiled.request
    with staging(options) as folder:
        write_files(compiled, folder)
        differences = verify(compiled, source, joint, samples, folder)
        rooms.verified(differences.as_dict())
        differences.refuse()
        memory = planned_memory(compiled)
        # The measured program takes every branch: a step needs that much at most.
        seal(compiled, folder, differences, memory, rooms.lines, unguarded(compiled))
        figures = measure(folder, steps=3, threads=options.target.threads or None)
        rooms.measured(figures, memory["planned"])
        memory["measured"] = figures or {}
        refusal = over_budget(compiled, memory)
        if refusal is not None:
            return refusal
        seal(compiled, folder, differences, memory, rooms.lines, programs(compiled))
        return Finished(Bundle.dry(folder) if options.dry_run else place(folder, options.output))


def seal(
    compiled: Compiled,
    folder: Path,
    differences: Differences,
    memory: Mapping[str, Any],
    lines: Sequence[str],
    steps: Mapping[str, Sequence[Word]],
) -> None:
    """Write report and manifest, with the programs `steps` and the `lines` of the rooms, for the files in `folder`."""
    verified = differences.as_dict()
    (folder / "report.json").write_text(report(compiled, verified, memory, lines), encoding="utf-8")
    write_manifest(folder, manifest(compiled, folder, verified, memory, steps))
