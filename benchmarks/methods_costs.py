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
from ttac.runtime.bundle import is_bundle, read_manifest
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
    models: Sequence[Path], methods: Sequence[str], choices: Mapping[str, Any], keep: Path, data: Path
) -> dict[tuple[str, str], float]:
    """Return (model, method) -> time of a step in times of the step of `source`, one thread.

    `keep` has the bundles of the evaluation with `choices`; methods without a bundle are left out.  `times.json` in it
    holds finished measurements: milliseconds of a step, and their ratio to inference of the model's file in turn.
    """
    file = keep / "times.json"
    known: dict[str, list[float]] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    specs = method_specs(methods, choices["settings"])
    subjects, _ = subjects_of(models, specs, [BATCH], choices["options"], keep / "bundles")
    with np.load(data, allow_pickle=False) as arrays:
        x = arrays["gaussian_noise"][:BATCH].astype(np.float32) / np.float32(255)
    for subject in subjects:
        key = f"{subject.model} {subject.method}"
        if key in known or not is_bundle(subject.bundle):
            continue
        adapter = load(subject.bundle, threads=1)
        source = inference(next(path for path in models if path.stem == subject.model), 1)
        times = paired(lambda run=source: run(x), lambda step=adapter.step: step(x), FEWEST)  # type: ignore[misc]
        known[key] = [1e3 * float(np.median(times.step)), times.ratio]
        file.write_text(json.dumps(known), encoding="utf-8")
    pairs = [(each.model, each.method) for each in subjects if f"{each.model} {each.method}" in known]
    return {(net, name): known[f"{net} {name}"][1] / known[f"{net} source"][1] for net, name in pairs}


def peaks(
    models: Sequence[Path], methods: Sequence[str], choices: Mapping[str, Any], keep: Path
) -> dict[tuple[str, str], int]:
    """Return (model, method) -> measured peak of a step in bytes, of the bundles that exist."""
    subjects, _ = subjects_of(
        models, method_specs(methods, choices["settings"]), [BATCH], choices["options"], keep / "bundles"
    )
    sizes = {
        (each.model, each.method): read_manifest(each.bundle)["memory"]["measured"].get("peak")
        for each in subjects
        if is_bundle(each.bundle)
    }
    return {key: int(size) for key, size in sizes.items() if size is not None}


def short_table(
    times: Mapping[tuple[str, str], float], memory: Mapping[tuple[str, str], int], names: Mapping[str, str]
) -> list[str]:
    """Return time and memory of all methods, two columns for each net with bundles; `names` are those of the nets."""
    nets = [net for net in names if any(model == net for model, _ in memory)]
    heads = [text for net in nets for text in (f"{names[net]}, time", "peak")]
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for method in sorted({method for _, method in memory}, key=lambda name: (name != "source", name)):
        cells = []
        for key in ((net, method) for net in nets):
            cells += [f"{times[key]:.1f}" if key in times else "-", format_size(memory[key]) if key in memory else "-"]
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return lines


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
    times: Mapping[tuple[str, str], float],
) -> list[str]:
    """Return one net's table: time, memory, worst corruption and the errors of the long stream.

    `rows` are those of the protocol `continual`.
    """
    lines = [
        "| method | step / `source` | peak of a step | highest error (source) | first pass | last | change |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    sizes = {row["method"]: row["peak_bytes"] for row in rows if _is(row, model, row["method"])}
    for method, peak in sizes.items():
        time = times.get((model, method))
        cells = [f"`{method}`", f"{time:.1f}" if time else "-"]
        cells += ["-" if peak is None else format_size(int(peak)), worst(rows, model, method)]
        errors = [100 * error for error in passes.get((model, method), ())]
        ends = [f"{errors[0]:.1f}", f"{errors[-1]:.1f}", f"{errors[-1] - errors[0]:+.1f}"] if errors else ["-"] * 3
        lines.append("| " + " | ".join([*cells, *ends]) + " |")
    return lines


def evaluate_long(models: Sequence[Path], data: Path, samples: int, **choices: Any) -> Any:
    """Return the evaluation of the long stream; `choices` are those of `ttac.evaluate`."""
    return ttac.evaluate(models, long_stream(data, samples), protocols=["continual"], batch=BATCH, **choices)
