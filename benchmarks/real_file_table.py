"""The page of real files: rows of earlier runs, and the table that they make."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "real-files.md"
ROWS = Path(__file__).with_suffix(".json")
"""Digest of a file -> its row: the file, its package and task, the head, the norms and the outcome of each method."""
METHODS = ("source", "bn", "leantta", "tent", "surgeon")
STEPS = 3
"""Steps that a bundle takes."""
Row = Mapping[str, str]
CLASSIFICATION = frozenset({"file types", "image filter", "text direction", "voice activity", "wake words"})
"""Tasks whose answer is one class of a whole sample."""


def merged(rows: Mapping[str, Row], order: Sequence[str]) -> list[Row]:
    """Store and return the known rows of the digests in `order`, with `rows` in the place of older ones."""
    known = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else {}
    kept = {digest: row for digest in order if (row := rows.get(digest, known.get(digest)))}
    ROWS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return list(kept.values())


def shares(rows: Sequence[Row]) -> list[str]:
    """Return the shares of the files with norms that compile."""
    batch = [row for row in rows if re.search(r"\d+ (batch|folded)", row["norms"])]
    normed = [row for row in rows if re.search(r"\d+ \w+", row["norms"])]
    single = sum("a channel of one sample is a single value" in row["leantta"] for row in batch)

    def share(method: str, among: Sequence[Row], less: int = 0) -> str:
        fine, count = sum(row[method].startswith("ok") for row in among), len(among) - less
        return f"`{method}` {fine} of {count} ({fine / max(count, 1):.0%})"

    return [
        f"With batch norms, folded ones included: {share('bn', batch)}, and {share('leantta', batch, single)}.",
        f"In {single} more files each channel has one value in a sample, which `leantta` cannot use.",
        f"With norms of any kind: {share('tent', normed)}.",
    ]


def made(rows: Sequence[Row]) -> str:
    """Return when the rows were made, and by which version."""
    runs = Counter(row["run"] for row in rows)
    if len(runs) == 1:
        return f"All rows are of one run, which began {next(iter(runs))}."
    return f"Rows by run, with its beginning: {', '.join(f'{count} of {run}' for run, count in sorted(runs.items()))}."


def table(rows: Sequence[Row]) -> str:
    """Return the page: counts, one row for each file, and the reasons of all refusals."""
    fine = {method: sum(row[method].startswith("ok") for row in rows) for method in METHODS}
    others = sum(row["task"] not in CLASSIFICATION for row in rows)
    counts = ", ".join(f"`{method}` {count}" for method, count in fine.items())
    lines = [
        "# Real files",
        "",
        "ONNX files with the weights that people install. `python -m benchmarks.real_files --write` downloads the",
        "packages, takes each file by its digest, and compiles it for five methods; with names, it updates their rows.",
        "Equal means within 1e-5 of onnxruntime. The samples are random numbers, so the table says nothing about",
        "errors. A time limit ends a compile on a busy machine; it is no refusal.",
        "",
        made(rows),
        "",
        f"The {len(rows)} files have {len({row['task'] for row in rows})} kinds of task. {others} of them do more than "
        "give a class to a sample.",
        f"So many compile and take {STEPS} steps: {counts}.",
        *shares(rows),
        "",
        "| file | task | norms | " + " | ".join(f"`{method}`" for method in METHODS) + " |",
        "|---|---|---|" + "---|" * len(METHODS),
    ]
    reasons: dict[str, int] = {}
    for row in rows:
        found = [row[method] for method in METHODS]
        cells = [cell if cell.startswith("ok") else f"[{reasons.setdefault(cell, len(reasons) + 1)}]" for cell in found]
        first = f"| {row['file']} ({row['package']}) | {row['task']} | {row['norms']} | "
        lines.append(first + " | ".join(cells) + " |")
    lines += ["", "## Reasons", ""]
    lines += [f"{number}. {reason.replace('|', '/')}" for reason, number in reasons.items()]
    lines += ["", "## Heads", ""]
    lines += [f"* {row['file']}: {row['head'].replace('|', '/')}" for row in rows]
    return "\n".join(lines) + "\n"
