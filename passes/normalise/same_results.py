"""Compare a normal form with the model as loaded, by executing both on few samples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.execute import Executable, batch_axes, rows
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.sample_set import SampleSet, random_samples
from ttac.passes.graph.shapes import dims
from ttac.passes.normalise.batch_walk import fixed_batch

LARGEST_BATCH = 1 << 26
"""Values of the batch on which the normal form is compared with the source: 256 MiB as float32."""
TOLERANCE = 1e-4
"""Largest difference from the loaded model, relative to its largest output."""
REAL = "give real samples, `--calibration PATH`, since random integers mean little and may magnify rounding; or "


def refuse_difference(
    reference: ir.Model,
    model: ir.Model,
    traced: int | None,
    rewritten: Sequence[str],
    *,
    most: int = 3,
    samples: SampleSet | None = None,
) -> None:
    """Run the model as loaded, on the batch it was exported with, and the result on 1 to `most` samples.

    A model that rounds by the range of a batch is compared on the same batches.  The samples are random floats.
    Integers are those of `samples`, if there are enough: random ones may mean nothing.
    """
    count = 3 if traced is None else max(3, traced)
    x = model.graph.inputs[0]
    _refuse_large(x, count)
    drawn = x.dtype is not None and x.dtype.is_integer()
    known = samples is not None and len(samples) >= count and samples.main.dtype.kind != "f"
    samples = samples.first(count) if known and samples else random_samples(model.graph.inputs, count)
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {"reference": reference, "normal": model})
        before, after = (Executable(Path(folder) / f"{name}.onnx") for name in ("reference", "normal"))
        axes = batch_axes(model)
        expected = rows(before, samples, traced or 3, axes)
        whole = traced is None and any(node.op_type.startswith("DynamicQuantize") for node in model.graph)
        for size in range(1, most + 1):
            expected = rows(before, samples.first(size), size, axes) if whole else expected
            results = rows(after, samples.first(size), size, axes)
            for output, result in results.items():
                first = np.take(expected[output], range(result.shape[axes[output]]), axes[output])
                worst = _distance(result, first)
                if worst > TOLERANCE * max(float(np.max(np.abs(first[np.isfinite(first)]), initial=0.0)), 1e-6):
                    raise _differs(size, worst, traced, rewritten, drawn and not known)


def _refuse_large(x: ir.Value, count: int) -> None:
    """Raise UnsupportedError for `count` samples that are too large to execute."""
    sample = [size for size in dims(x) if isinstance(size, int)]
    if count * math.prod(sample) > LARGEST_BATCH:
        raise UnsupportedError(
            f"{count} samples of shape {sample} are {count * math.prod(sample):,} values, too many to execute",
            where=f"input `{x.name}`",
            hint="state the size that the device uses: `--shape 3x224x224`",
        )


def _distance(results: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference. NaN and infinity must be where they are expected."""
    same = (results == expected) | (np.isnan(results) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(results - expected))
    return float(np.max(np.nan_to_num(apart, nan=np.inf), initial=0.0))


def _differs(size: int, worst: float, traced: int | None, rewritten: Sequence[str], drawn: bool) -> UnsupportedError:
    if rewritten:
        nodes = ", ".join(f"`{name}`" for name in rewritten[:8])
        return fixed_batch(
            f"nodes {nodes}", f"rewritten for {size} samples, they give results off by {worst:.2g}", traced
        )
    return UnsupportedError(
        "the samples of a batch influence each other",
        where=f"the outputs for {size} samples are off by {worst:.2g} from those of the file, batch {traced or 3}",
        hint=f"{REAL if drawn else ''}look for an operator that reduces, sorts or normalises over the first axis",
    )
