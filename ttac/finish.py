"""The last rooms: write the bundle to a staging folder, verify and measure it, and move it to its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttac.blocked_form import WrittenForm, remove_forms, run_here, write_forms
from ttac.bundle_content import BundleContent
from ttac.bundle_writer import manifest, report, write_files
from ttac.memory_check import OverBudget, over_budget, planned_memory
from ttac.options import emitted_folder
from ttac.passes.verify.compare import Differences
from ttac.program_writer import programs, unguarded
from ttac.reports.measure import measure
from ttac.reports.progress import RoomLog
from ttac.runtime.bundle import Bundle, place, write_manifest
from ttac.runtime.replacement import exchange
from ttac.size_trials import with_smallest
from ttac.spec import Word
from ttac.staging import staging
from ttac.training_files import write_training_files
from ttac.verification import verification_feeds, verify


@dataclass(frozen=True)
class Finished:
    """A bundle in its place."""

    bundle: Bundle


def finish(content: BundleContent, log: RoomLog) -> Finished | OverBudget:
    """Write, verify and measure the bundle, and move it into place; a bundle over the budget is not kept.

    Raises VerificationError if a difference is above its bound.  On any error nothing is left at the output.
    """
    options = content.state.options
    with staging(options) as folder:
        write_files(content, folder)
        emitted = _emitted(content, folder.parent)
        differences = verify(content, folder)
        log.verify(differences.as_dict())
        differences.refuse()
        forms = write_forms(content, folder, verification_feeds(content), log.note)
        content = replace(content, forms=[form.entry for form in forms])
        memory = planned_memory(content.fixed or content) | _planned_forms(forms)
        # The measured program takes every branch: a step needs that much at most.
        seal(content, folder, differences, memory, log.lines, unguarded(content))
        threads = options.target.threads or None
        figures = measure(folder, steps=3, threads=threads, form="portable")
        log.measure(figures, memory["planned"])
        memory["measured"] = figures or {}
        refusal = over_budget(content, memory)
        if refusal is not None:
            return refusal
        content = with_smallest(content, folder) if content.sizes else content
        for form in ("kernels", "blocked"):
            content = _within_budget(content, folder, memory, form, log)
        seal(content, folder, differences, memory, log.lines, programs(content))
        if options.dry_run:
            return Finished(Bundle.dry(folder))
        if emitted is not None:
            exchange(*emitted)
        return Finished(place(folder, options.output))


def _planned_forms(forms: Sequence[WrittenForm]) -> dict[str, Any]:
    """The planned peak of the blocked graphs, and of those with kernels: bytes, the highest of all block sizes."""
    peaks: dict[str, list[int]] = {}
    for form in forms:
        peaks.setdefault(_kind(form.entry), []).append(form.peak)
    return {f"planned_{kind}": {"peak": max(found)} for kind, found in peaks.items()}


def _kind(entry: Mapping[str, Any]) -> str:
    """The name of a form without its block size, as `ttac.load` takes it."""
    return "kernels" if entry.get("kernels") else "blocked"


def _emitted(content: BundleContent, staged: Path) -> tuple[Path, Path] | None:
    """Write the files of `--emit` below `staged`; return their folder there and its place, None without the option."""
    place = emitted_folder(content.state.options.output, content.state.options.emit)
    if place is None:
        return None
    folder = staged / "emitted"
    folder.mkdir()
    write_training_files(content, folder)
    return folder, place


def _within_budget(
    content: BundleContent, folder: Path, memory: dict[str, Any], form: str, log: RoomLog
) -> BundleContent:
    """The content without the blocked graphs or those with kernels, if a step of them needs more than the budget."""
    entries = [entry for entry in content.forms if _kind(entry) == form]
    if not run_here(entries, folder):
        return content
    threads = content.state.options.target.threads or None
    memory[f"measured_{form}"] = measure(folder, steps=3, threads=threads, form=form) or {}
    if over_budget(content, {**memory, "measured": memory[f"measured_{form}"]}) is None:
        return content
    remove_forms(entries, folder)
    memory.pop(f"planned_{form}")
    log.note(f"the graphs of the form {form} are left out: they need more than the budget")
    return replace(content, forms=[entry for entry in content.forms if entry not in entries])


def seal(
    content: BundleContent,
    folder: Path,
    differences: Differences,
    memory: Mapping[str, Any],
    lines: Sequence[str],
    steps: Mapping[str, Sequence[Word]],
) -> None:
    """Write report and manifest, with the programs `steps` and the `lines` of the rooms, for the files in `folder`."""
    verified = differences.as_dict()
    (folder / "report.json").write_text(report(content, verified, memory, lines), encoding="utf-8")
    write_manifest(folder, manifest(content, folder, verified, memory, steps))
