"""Time of a step, and errors over a stream ten times as long, for `benchmarks.methods_table`.

The long stream repeats the 15 corruptions in severity 5 without a reset; the images of a corruption come in another
order each time.  Times are those of bundles that the table has compiled: a step and inference of the source model take
turns, so that other work on the machine disturbs both alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ttac
from ttac.evaluation.corruptions import NAMES, corrupted
from ttac.evaluation.source_inference import inference
from ttac.evaluation.subjects import method_specs, subjects_of
from ttac.evaluation.timing import FEWEST, paired
from ttac.runtime import load
from ttac.runtime.bundle import is_bundle
from ttac.sizes import format_size

PASSES, BATCH = 10, 64
"""Repetitions of the corruptions in the long stream, and samples of a step."""

Rows = Sequence[Mapping[str, Any]]


def long_stream(data: Path, samples: int) -> dict[str, np.ndarray]:
    """Return `pass NUMBER CORRUPTION` -> images uint8 of that pass, in the order of the stream, and `labels`."""
    with np.load(data, allow_pickle=False) as file:
        clean, labels = file["clean"][:samples], file["labels"][:samples]
    images = {name: corrupted(clean, name, 5) for name in NAMES}
    return {**{f"pass {k} {name}": images[name] for k in range(1, PASSES + 1) for name in NAMES}, "labels": labels}


def pass_errors(rows: Rows) -> dict[tuple[str, str], list[float]]:
    """Return (model, method) -> error of each pass, in 0..1."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    for row in rows:
        passes = found.setdefault((row["model"], row["method"]), [[] for _ in range(PASSES)])
        passes[int(row["shift"].split()[1]) - 1].append(row["error"])
    return {key: [float(np.mean(errors)) for errors in passes] for key, passes in found.items()}


def step_times(
    models: Sequence[Path], methods: Sequence[str], choices: Mapping[str, Any], data: Path, keep: Path
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return (model, method) -> milliseconds of a step and its ratio to inference of the source, one thread.

    `keep` has the bundles of the evaluation with `choices`; `times.json` in it holds finished measurements.
    """
    file = keep / "times.json"
    known: dict[str, list[float]] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    specs = method_specs(methods, choices["settings"])
    subjects, _ = subjects_of(models, specs, [BATCH], choices["options"], keep / "bundles")
    with np.load(data, allow_pickle=False) as arrays:
        x = arrays["gaussian_noise"][:BATCH].astype(np.float32) / np.float32(255)
    found = {}
    for subject in subjects:
        if not is_bundle(subject.bundle):
            continue
        key = f"{subject.model} {subject.method}"
        if key not in known:
            adapter = load(subject.bundle, threads=1)
            source = inference(next(path for path in models if path.stem == subject.model), 1)
            times = paired(lambda run=source: run(x), lambda step=adapter.step: step(x), FEWEST)  # type: ignore[misc]
            known[key] = [1e3 * float(np.median(times.step)), times.ratio]
            file.write_text(json.dumps(known), encoding="utf-8")
        found[subject.model, subject.method] = (known[key][0], known[key][1])
    return found


def worst(rows: Rows, model: str, method: str) -> str:
    """Return the corruption of the highest error in severity 5, its error and the source's, in per cent."""
    errors, source = (
        {row["shift"]: row["error"] for row in rows if _is(row, model, name)} for name in (method, "source")
    )
    if not errors:
        return "-"
    shift = max(errors, key=lambda name: errors[name])
    return f"{shift}: {100 * errors[shift]:.1f} ({100 * source[shift]:.1f})"


def _is(row: Mapping[str, Any], model: str, method: str) -> bool:
    return (row["model"], row["method"], row["severity"], row["batch"]) == (model, method, 5, BATCH)


def cost_table(
    model: str,
    rows: Rows,
    passes: Mapping[tuple[str, str], Sequence[float]],
    times: Mapping[tuple[str, str], tuple[float, float]],
) -> list[str]:
    """Return one net's table: time, memory, worst corruption and the errors of the long stream.

    `rows` are those of the protocol `continual`.
    """
    lines = [
        "| method | step, ms | / inference | peak of a step | highest error (source) | first pass | last | change |",
        "|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    peaks = {row["method"]: row["peak_bytes"] for row in rows if _is(row, model, row["method"])}
    for method, peak in peaks.items():
        time = times.get((model, method))
        cells = [f"`{method}`", *((f"{time[0]:.1f}", f"{time[1]:.1f}") if time else ("-", "-"))]
        cells += ["-" if peak is None else format_size(int(peak)), worst(rows, model, method)]
        errors = [100 * error for error in passes.get((model, method), ())]
        ends = [f"{errors[0]:.1f}", f"{errors[-1]:.1f}", f"{errors[-1] - errors[0]:+.1f}"] if errors else ["-"] * 3
        lines.append("| " + " | ".join([*cells, *ends]) + " |")
    return lines


def evaluate_long(models: Sequence[Path], data: Path, samples: int, **choices: Any) -> Any:
    """Return the evaluation of the long stream; `choices` are those of `ttac.evaluate`."""
    return ttac.evaluate(models, long_stream(data, samples), protocols=["continual"], batch=BATCH, **choices)
