"""Checks of this machine: Python, the engine, its limits, the packages, and the demands of a target."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata, resources, util
from typing import Any, Literal

from packaging.version import Version

from ttac import targets
from ttac.child_process import run_code
from ttac.runtime.providers import CPU
from ttac.samples.archives import physical_memory
from ttac.sizes import format_size
from ttac.spec import Target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Verdict = Literal["ok", "info", "warn", "fail"]

ENGINES = ("onnxruntime", "onnxruntime-training-cpu", "onnxruntime-training", "onnxruntime-gpu", "onnxruntime-openvino")
RUN, COMPILE = "run", "compile"
PARTS = {"numpy": RUN, "safetensors": RUN, "onnx": COMPILE, "onnx-ir": COMPILE, "onnxsim": COMPILE, "networkx": COMPILE}
"""Packages that ttac needs, and the task that needs each."""
OPTIONAL = {"netron": "`ttac view`", "torch": "more tests and the benchmarks", "matplotlib": "`ttac demo --png`"}
"""Packages that ttac can do without, and the use of each."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report.

    Attributes:
        verdict: "fail" means that something essential is missing or known to be bad.
        hint: a command that repairs the fault; empty where nothing failed.
    """

    part: str
    verdict: Verdict
    found: str
    note: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Limits:
    """The highest opset and IR version that a release of the engine accepts."""

    opset: int
    ir_version: int
    remark: str = ""


def examine(target: Target | None = None) -> list[Check]:
    """Return all checks of this machine, and those of `target` if there is one."""
    checks = [*_machine(), *_engine(), *_packages()]
    return [*checks, *_target(target)] if target else checks


def as_json(checks: list[Check]) -> dict[str, Any]:
    """Return the report for programs: `ok` and one object per check."""
    return {"ok": all(check.verdict != "fail" for check in checks), "checks": [asdict(check) for check in checks]}


def known_versions() -> list[str]:
    """Return the releases in the table, oldest first."""
    return sorted(_table()["releases"], key=Version)


def limits(version: str) -> Limits:
    """Return the limits of onnxruntime `version`; a version beyond the table has those of the newest row."""
    known, release = known_versions(), Version(version).release[:2]
    reached = [name for name in known if Version(name).release <= release]
    return Limits(**_table()["releases"][reached[-1] if reached else known[0]])


def denied(version: str, machine: str) -> str:
    """Return the reason why the engine version is bad on a machine like `aarch64`; empty when none is known."""
    rows = [row for row in _table()["bad"] if Version(row["version"]) == Version(version)]
    return next((str(row["reason"]) for row in rows if machine.lower() in row["machines"]), "")


def installed(package: str) -> str:
    """Return the version of an installed distribution; empty if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


SECONDS = 120
"""Longest time of a child process; an import takes about one second on an idle machine."""


def import_failure() -> str:
    """Return the reason why the engine cannot be imported; empty when it can.

    The import runs in a child process because a bad engine may crash it.
    """
    try:
        done = run_code("import onnxruntime", seconds=SECONDS)
    except subprocess.TimeoutExpired:
        return f"the import does not end within {SECONDS} s"
    if done.returncode < 0:
        return f"the process ends with signal {-done.returncode}"
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return last if done.returncode else ""


def engine_block(*, kernels: bool = False) -> tuple[int, str] | None:
    """Return the channels of a block in the engine's layout, or 0 and the reason; None if no probe can be made or run.

    With `kernels`, the probe also has operators of `ttac-kernels`.

    The probe runs in a child process because internal operators may crash an engine.
    """
    code = "from ttac.passes.blocked.probe import engine_block; print(*engine_block(kernels=" + f"{kernels}))"
    try:
        done = run_code(code, seconds=SECONDS)
    except subprocess.TimeoutExpired:
        return None
    block, _, reason = done.stdout.strip().partition(" ")
    return None if done.returncode else (int(block), reason)


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> Iterator[Check]:
    version = platform.python_version()
    fits = (3, 10) <= sys.version_info[:2] <= (3, 14)
    yield Check(
        part="python", verdict="ok" if fits else "warn", found=version, note="" if fits else "tested with 3.10 to 3.14"
    )
    yield Check(part="system", verdict="info", found=f"{platform.system()} {platform.machine()}")
    yield Check(part="cores", verdict="info", found=str(cores()))
    yield Check(part="memory", verdict="info", found=format_size(physical_memory()) if physical_memory() else "unknown")


def _engine() -> Iterator[Check]:
    found = {package: installed(package) for package in ENGINES if installed(package)}
    if not found:
        yield Check(
            part="engine", verdict="fail", found="none", note="nothing can run a bundle", hint="pip install onnxruntime"
        )
        return
    for package, version in found.items():
        known = limits(version)
        reason = denied(version, platform.machine())
        note = reason or f"accepts opset {known.opset} and IR version {known.ir_version}"
        hint = f"pip install '{package}!={version}'" if reason else ""
        yield Check(
            part="engine", verdict="fail" if reason else "ok", found=f"{package} {version}", note=note, hint=hint
        )
    if crash := import_failure():
        yield Check(
            part="engine",
            verdict="fail",
            found="it cannot be imported",
            note=crash,
            hint="pip install --force-reinstall " + next(iter(found)),
        )
    else:
        yield from _providers()
        yield from _layout()
    if len(found) > 1:
        note = "they overwrite each other's files; keep one"
        yield Check(
            part="engine",
            verdict="warn",
            found=f"{len(found)} packages",
            note=note,
            hint="pip uninstall " + " ".join(list(found)[1:]),
        )


def _providers() -> Iterator[Check]:
    """The execution providers of the engine."""
    names = run_code("import onnxruntime; print(*onnxruntime.get_available_providers())").stdout.split()
    note = "`ttac run --providers` takes them" if names != [CPU] else "bundles run on the CPU"
    yield Check(part="providers", verdict="info", found=", ".join(names) or "none", note=note)


def _layout() -> Iterator[Check]:
    if (layout := engine_block()) is None:
        return
    block, reason = layout
    if not block:
        yield Check(part="graphs", verdict="info", found="portable", note=reason)
        return
    with_kernels, reason = engine_block(kernels=True) or (0, "the probe of ttac-kernels ends its process")
    if with_kernels:
        note = "the engine runs blocked graphs with ttac-kernels"
        yield Check(part="graphs", verdict="info", found=f"kernels-{with_kernels}", note=note)
    else:
        note = f"the engine runs blocked graphs, without kernels: {reason}"
        yield Check(part="graphs", verdict="info", found=f"blocked-{block}", note=note)


def _packages() -> Iterator[Check]:
    for package, purpose in PARTS.items():
        if version := installed(package):
            yield Check(part=package, verdict="ok", found=version)
        else:
            verdict: Verdict = "fail" if purpose == RUN else "warn"
            yield Check(
                part=package,
                verdict=verdict,
                found="none",
                note=f"needed to {purpose} a bundle",
                hint=f"pip install {package}",
            )
    for package, purpose in OPTIONAL.items():
        version = installed(package) if util.find_spec(package) else ""
        yield Check(part=package, verdict="info", found=version or "none", note=f"optional, for {purpose}")


def _target(target: Target) -> Iterator[Check]:
    part = f"target {target.name}"
    yield _against(part, "Python", target.python, platform.python_version())
    engines = [installed(package) for package in ENGINES if installed(package)]
    for version in engines:
        yield _engine_against(part, target, version)
    memory = physical_memory()
    if memory and memory < target.memory:
        note = f"the target's budget is {format_size(target.memory)}"
        yield Check(part=part, verdict="warn", found=f"{format_size(memory)} of memory", note=note)
    else:
        yield Check(part=part, verdict="ok", found=f"budget {format_size(target.memory)}", note=f"batch {target.batch}")
    for note in target.notes:
        yield Check(part=part, verdict="info", found="note", note=note)


def _engine_against(part: str, target: Target, version: str) -> Check:
    reason = target.denied.get(version, "")
    if reason:
        return Check(
            part=part,
            verdict="fail",
            found=f"{target.engine} {version}",
            note=reason,
            hint=f"pip install '{target.engine}!={version}'",
        )
    if not targets.admits(target.engine_versions, version):
        return _against(part, target.engine, target.engine_versions, version)
    known = limits(version)
    if known.opset < target.opset or known.ir_version < target.ir_version:
        note = f"accepts opset {known.opset}, IR version {known.ir_version}"
        note += f"; the target is {target.opset}, {target.ir_version}"
        return Check(
            part=part,
            verdict="fail",
            found=f"{target.engine} {version}",
            note=note,
            hint=f"pip install '{target.engine}>=1.18'",
        )
    return Check(
        part=part, verdict="ok", found=f"{target.engine} {version}", note=f"needs {target.engine_versions or 'any'}"
    )


def _against(part: str, package: str, wanted: str, version: str) -> Check:
    if targets.admits(wanted, version):
        return Check(part=part, verdict="ok", found=f"{package} {version}", note=f"needs {wanted}" if wanted else "")
    hint = f"pip install '{package}{wanted}'" if package != "Python" else f"install Python {wanted}"
    return Check(part=part, verdict="fail", found=f"{package} {version}", note=f"needs {wanted}", hint=hint)


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files("ttac.reports").joinpath("engines.toml").read_text(encoding="utf-8"))
