"""The cells of the model matrix as a page of the documentation."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

METHODS = ("bn", "tent", "sar", "eata", "surgeon", "leantta")
PYTORCH = {
    "legacy-13": "`torch.onnx.export(dynamo=False, opset_version=13)`, constants folded, batch 1 in the file",
    "legacy-14": "the same in opset 14, constants folded, the batch symbolic",
    "legacy-15": "the same in opset 15, norms kept (`PRESERVE`, no folding), batch 2 in the file",
    "legacy-16": "the same in opset 16, norms kept, batch 2 in the file",
    "legacy-17": "the same in opset 17, norms kept, the batch symbolic",
    "dynamo": "`torch.onnx.export(model, x)`, which folds batch norms, batch 1 in the file",
    "dynamo-plain": "the same with `optimize=False` and a symbolic batch",
}
KERAS = {
    "tf2onnx-13": "`tf2onnx.convert.from_keras(model, opset=13)`, channels last as in Keras, batch 1 in the file",
    "tf2onnx-14": "the same in opset 14, batch 2 in the file",
    "tf2onnx-15": "the same in opset 15, the batch symbolic, `inputs_as_nchw`",
    "tf2onnx-16": "the same in opset 16, the batch symbolic, channels last",
    "tf2onnx-17": "the same in opset 17",
    "tf2onnx-18": "the same in opset 18",
    "keras": '`model.export(path, format="onnx")` of Keras, which calls tf2onnx in opset 15',
}
EXPORTERS = {**PYTORCH, **KERAS}
PREFIX = "keras."
"""Prefix of the folders of networks from Keras."""

PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime-training-cpu", "numpy")
SAME = 1e-3
"""Relative distance to the framework's logits, without and with batch statistics, above which gradients may differ."""

RESTORED = 1e-5
"""The same distance for norms that were inserted again."""

INTRODUCTION = """# The model matrix

Architectures in small variants with random weights, as exporters write them, compiled with each method for target
`cpu` and batch 4: timm's by PyTorch's exporters, and those of `keras.applications` with some small ones by tf2onnx
and Keras. A cell says two things. First, how far the gradient is from the framework's, PyTorch's in float64 or
tf.GradientTape's in float32: relative length of the difference, over all norms that carry the framework's names.
Where norms were folded away, or the file and the framework compute different values, it is the distance to finite
differences of the loss, beyond their own uncertainty (`fd`). Second, the time of a step as a multiple of inference of
the same file on the same engine, one thread; some cells were not timed. For `bn` and `leantta`, which have no
gradient, a cell has the time only.

Everything in a cell ran: compiled, verified, two steps at the full batch and one of three samples. `+` means that the
exporter had folded norms away and they were put back from calibration data. A letter is a refusal (its reason is
below the tables); `–` means that the exporter itself refuses the network or writes an invalid file, and `·` that the
cell was not run. Cells are kept from run to run: not all are of the date below. Times were taken while the machine
was busy: read the ratios as rough.

`python -m benchmarks.model_matrix_export DIR`, `python -m benchmarks.model_matrix_keras DIR` (in an environment with
TensorFlow; left out, its networks are missing), then `python -m benchmarks.model_matrix DIR`, makes this page.
"""


def write_table(target: Path, root: Path, cells: Sequence[dict[str, Any]]) -> None:
    """Write the page for the cells of the exports in `root` to `target`."""
    reasons: dict[str, str] = {}
    lines = [INTRODUCTION, environment(), "", summary(cells), "", "| exporter | |", "|---|---|"]
    lines += [f"| {name} | {meaning} |" for name, meaning in EXPORTERS.items()]
    for method in METHODS:
        matching = [cell for cell in cells if cell["method"] == method]
        lines += ["", f"## `{method}`"] if matching else []
        for exporters, keras in ((PYTORCH, False), (KERAS, True)):
            lines += table(root, [c for c in matching if c["model"].startswith(PREFIX) == keras], exporters, reasons)
    lines += ["", "## Reasons", ""]
    lines += [f"* **{letter}** {reason}" for reason, letter in reasons.items()]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(root: Path, cells: Sequence[dict[str, Any]], exporters: Iterable[str], reasons: dict[str, str]) -> list[str]:
    """Return a table of the cells of one method and one framework; empty without cells."""
    if not cells:
        return []
    known = {(cell["model"], cell["exporter"]): cell for cell in cells}
    used = [name for name in exporters if any(exporter == name for _, exporter in known)]
    lines = ["", "| network | " + " | ".join(used) + " |", "|---" * (len(used) + 1) + "|"]
    for model in sorted({cell["model"] for cell in cells}):
        texts = [text(known.get((model, name)), root / model / f"{name}.onnx", reasons) for name in used]
        lines.append(f"| {model} | " + " | ".join(texts) + " |")
    return lines


def environment() -> str:
    """Return the date, the machine and the versions."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    python = platform.python_version()
    return f"{datetime.date.today():%Y-%m-%d}; {platform.machine()}, Python {python}, {versions}."


def summary(cells: Sequence[dict[str, Any]]) -> str:
    """Return the number of cells with each outcome as a sentence."""
    counts = Counter(cell["outcome"] for cell in cells)
    networks = len({cell["model"] for cell in cells if cell["outcome"] == "ran"})
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    return f"{len(cells)} cells: {outcomes}. {networks} networks run with at least one method."


def text(cell: dict[str, Any] | None, file: Path, reasons: dict[str, str]) -> str:
    """Return one cell as text; `reasons` gets a letter for each new refusal."""
    if cell is None:
        return "–" if file.with_suffix(".error").exists() else "·"
    if cell["outcome"] != "ran":
        first = cell["reason"].strip().splitlines()[-1 if cell["outcome"] == "crashed" else 0]
        return reasons.setdefault(f"{cell['outcome']}: {first}", letters(len(reasons)))
    mark = " +" if cell.get("inserted") else ""
    ratio = f"{cell['ratio']:.1f}x" if "ratio" in cell else ""
    derivative = (cell["verified"] or {}).get("derivative")
    apart = max(cell.get("file", 0.0), cell.get("adapted", 0.0))
    # An inserted norm equals the framework's norm only if calibration and epsilon, which no file contains, are equal.
    same = cell.get("gradient") is not None and apart < (RESTORED if cell.get("inserted") else SAME)
    error = f"{cell['gradient']:.0e}" if same else "" if derivative is None else f"fd {derivative:.0e}"
    return ", ".join(part for part in (error, ratio) if part) + mark


def letters(count: int) -> str:
    """Return entry `count` of a, b, ..., z, aa, ab, ..."""
    head, tail = divmod(count, 26)
    return (chr(96 + head) if head else "") + chr(97 + tail)
