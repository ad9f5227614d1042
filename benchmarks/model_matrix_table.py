"""The cells of the model matrix as a page of the documentation."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXPORTERS = {
    "legacy-13": "`torch.onnx.export(dynamo=False, opset_version=13)`, constants folded, batch 1 in the file",
    "legacy-15": "the same in opset 15, norms kept (`PRESERVE`, no folding), batch 2 in the file",
    "legacy-17": "the same in opset 17, norms kept, the batch symbolic",
    "dynamo": "`torch.onnx.export(model, x)`, which folds batch norms, batch 1 in the file",
    "dynamo-plain": "the same with `optimize=False` and a symbolic batch",
}
PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime-training-cpu", "numpy")
SAME = 1e-3
"""Relative distance to PyTorch's logits, as they are and with batch statistics, from which on gradients may differ."""

INTRODUCTION = """# The model matrix

Architectures of timm, in small variants with random weights, as PyTorch's exporters write them, compiled with each
method for target `cpu` and batch 4. A cell says two things. First, how far the gradient is from PyTorch's in float64:
relative length of the difference, over all norms that carry PyTorch's names. Where norms were folded away, or the file
does not compute what PyTorch does, it is the distance to finite differences of the loss, beyond their own
uncertainty (`fd`). Second, what a step costs in plain inferences of the same file on the same engine, one thread; not
everywhere was that timed. For `bn`, which has no gradient, there is only the latter.

Everything in a cell ran: compiled, verified, two steps at the full batch and one of three samples. `+` means that the
exporter had folded norms away and they were put back from calibration data. A letter is a refusal with exit code 3 (its
reason is below the tables); `–` means that the exporter itself refuses the network, and `·` that the cell was not run.
Times were taken while the machine was busy: read the ratios as rough.

`python -m benchmarks.model_matrix_export DIR`, then `python -m benchmarks.model_matrix DIR`, makes this page.
"""


def write_table(target: Path, root: Path, cells: Sequence[dict[str, Any]]) -> None:
    """Write the page for the cells of the exports in `root`."""
    known = {(cell["model"], cell["exporter"], cell["method"]): cell for cell in cells}
    models = sorted({cell["model"] for cell in cells})
    methods = [name for name in ("bn", "tent", "sar", "eata") if any(cell["method"] == name for cell in cells)]
    reasons: dict[str, str] = {}
    lines = [INTRODUCTION, environment(), "", summary(cells), "", "| exporter | |", "|---|---|"]
    lines += [f"| {name} | {meaning} |" for name, meaning in EXPORTERS.items()]
    for method in methods:
        lines += ["", f"## `{method}`", "", "| network | " + " | ".join(EXPORTERS) + " |", "|---" * 6 + "|"]
        for model in models:
            texts = [text(known.get((model, name, method)), root / model / name, reasons) for name in EXPORTERS]
            lines.append(f"| {model} | " + " | ".join(texts) + " |")
    lines += ["", "## Reasons", ""]
    lines += [f"* **{letter}** {reason}" for reason, letter in reasons.items()]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def environment() -> str:
    """Versions and date."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    python = platform.python_version()
    return f"{datetime.date.today():%Y-%m-%d}; {platform.machine()}, Python {python}, {versions}."


def summary(cells: Sequence[dict[str, Any]]) -> str:
    """How many cells came out how."""
    counts = Counter(cell["outcome"] for cell in cells)
    networks = len({cell["model"] for cell in cells if cell["outcome"] == "ran"})
    found = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    return f"{len(cells)} cells: {found}. {networks} networks run with at least one method."


def text(cell: dict[str, Any] | None, file: Path, reasons: dict[str, str]) -> str:
    """One cell; `reasons` gets a letter for each new refusal."""
    if cell is None:
        return "–" if file.with_suffix(".error").exists() else "·"
    if cell["outcome"] != "ran":
        first = cell["reason"].strip().splitlines()[-1 if cell["outcome"] == "crashed" else 0]
        return reasons.setdefault(f"{cell['outcome']}: {first}", letters(len(reasons)))
    mark = " +" if cell.get("inserted") else ""
    ratio = f"{cell['ratio']:.1f}x" if "ratio" in cell else ""
    slope = (cell["verified"] or {}).get("slope")
    apart = max(cell.get("file", 0.0), cell.get("adapted", 0.0))
    same = cell.get("gradient") is not None and not cell.get("inserted") and apart < SAME
    error = f"{cell['gradient']:.0e}" if same else "" if slope is None else f"fd {slope:.0e}"
    return ", ".join(part for part in (error, ratio) if part) + mark


def letters(count: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    head, tail = divmod(count, 26)
    return (chr(96 + head) if head else "") + chr(97 + tail)
