"""Calibration data: unlabelled source samples, and the statistics of a graph's values on them."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.errors import UsageError
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import Executable
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.sample_set import SampleSet
from ttac.samples.archives import stated_arrays
from ttac.samples.doubts import doubts
from ttac.samples.images import FORMS, open_stream, preparation

ROOM = "calibration"
FEW_SAMPLES = 32
"""Number of samples below which the statistics are too coarse to trust; a few hundred are right."""

Moments = tuple[np.ndarray, np.ndarray]
"""Mean and biased variance of each channel, [C] each."""


def read(
    source: str | Path | np.ndarray,
    sample: Sequence[int],
    preprocessing: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
    *,
    dtype: str = "float32",
) -> np.ndarray:
    """Return source samples [n, *sample] of `dtype`, that of the model's input.

    Args:
        source: an array; an `.npz` (its first array), an `.npy` or a folder of images, in the order of their names.
        sample: shape of one sample, as the model's input has it.
        preprocessing: as in the manifest; without it, bytes become [0, 1].
        say: receives a line for each doubt about the data.

    Raises UsageError for a source of another form, for samples of another shape or type, for NaN and infinity.
    """
    how = preparation(["N", *sample], preprocessing, dtype)
    if isinstance(source, np.ndarray):
        samples, where = _array(source, sample, dtype), "the array"
    else:
        stream = open_stream(Path(source), how)
        samples, where = stream.read(0, stream.count), f"`{source}`"
        if not stream.prepared and preprocessing is None:
            say("calibration images were scaled to [0, 1]; `--pixels` states another scale")
    refuse_infinite(samples, where)
    say_doubts(samples, say)
    for doubt in doubts(samples, how):
        say(doubt.replace("the samples", "the calibration samples", 1))
    return samples


def refuse_infinite(samples: np.ndarray, where: str) -> None:
    """Raise UsageError for NaN or infinity; `where` is the place of the samples."""
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        bad = int(np.argmax(~np.isfinite(samples).reshape(samples.shape[0] if samples.ndim else 1, -1).all(axis=1)))
        raise UsageError(
            "calibration data contains NaN or infinity", where=f"sample {bad} of {where}", hint="remove it"
        )


def sample_shape(source: str | Path | np.ndarray) -> tuple[int, ...] | None:
    """Return the shape of one sample of an array, an `.npz` or an `.npy`.

    None for a folder, whose images are resized. Raises UsageError if the file contains no array.
    """
    if isinstance(source, np.ndarray):
        return tuple(source.shape[1:])
    path = Path(source)
    if path.is_dir():
        return None
    try:
        if path.suffix == ".npy":
            return tuple(np.load(path, mmap_mode="r", allow_pickle=False).shape[1:])
        return next(stated.shape[1:] for name, stated in stated_arrays(path).items() if name != "labels")
    except (OSError, ValueError, EOFError, TypeError, StopIteration, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read calibration data: {error}", where=f"`{path}`", hint=FORMS) from error


def _array(source: np.ndarray, sample: Sequence[int], dtype: str) -> np.ndarray:
    takes_floats = np.dtype(dtype).kind == "f"
    if not (np.issubdtype(source.dtype, np.floating) if takes_floats else np.can_cast(source.dtype, dtype)):
        raise UsageError(
            f"calibration samples are `{source.dtype}`", hint=f"prepare them for the model's input, {dtype}"
        )
    if source.ndim == 0 or len(source) == 0:
        raise UsageError("calibration data holds no sample", hint=FORMS)
    if source.shape[1:] != tuple(sample):
        raise UsageError(
            f"calibration samples have shape {list(source.shape[1:])}, the model takes {list(sample)}",
            hint="give an array [n, " + ", ".join(str(size) for size in sample) + "]",
        )
    return np.ascontiguousarray(source, dtype)


def say_doubts(samples: np.ndarray, say: Callable[[str], None]) -> None:
    """Say that samples [n, ...] are constant or few."""
    flat = samples.reshape(len(samples), -1)
    constant = int(np.sum(flat.min(axis=1) == flat.max(axis=1)))
    if constant:
        say(f"{constant} of {len(samples)} calibration samples are constant, the same value everywhere")
    if len(samples) < FEW_SAMPLES:
        say(f"{len(samples)} calibration samples are few; a few hundred give reliable statistics")


def statistics(
    model: ir.Model, samples: np.ndarray | SampleSet, values: Sequence[ir.Value], batch: int = 8
) -> dict[str, Moments]:
    """Return, by value name, channel mean and biased variance over all samples, float32 [C] each.

    The pass over `samples` takes `batch` at a time. The graph itself reduces every value to means and variances of
    the batch. The total variance formula combines the batches in float64. `model` stays unchanged.

    Args:
        model: a normalised model.
        samples: for all inputs, or float32 [n, ...] for the only input.
        values: values of `model`, each [N, C, ...].
        batch: samples run together.
    """
    observed = observer(model, [str(value.name) for value in values])
    samples = SampleSet.of(model, samples)
    totals: dict[str, Moments] = {}
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {"observer": observed})
        run = Executable(Path(folder) / "observer.onnx")
        for start, part in zip(range(0, len(samples), batch), samples.batches(batch), strict=True):
            moments = run(part)
            for value in values:
                key = str(value.name)
                here = (moments[f"{key}.mean"].astype(np.float64), moments[f"{key}.var"].astype(np.float64))
                totals[key] = (
                    here if start == 0 else combine(totals[key], start, here, min(batch, len(samples) - start))
                )
    return {key: (mean.astype(np.float32), var.astype(np.float32)) for key, (mean, var) in totals.items()}


def combine(first: Moments, size: int, second: Moments, more: int) -> Moments:
    """Return mean and biased variance of two sets of samples together, by the total variance formula."""
    weight = more / (size + more)
    step = second[0] - first[0]
    within = first[1] * (1 - weight) + second[1] * weight
    return first[0] + weight * step, within + weight * (1 - weight) * step**2


def observer(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a copy of `model` whose outputs are `<name>.mean` and `<name>.var`, [C] each, for every name.

    The variance is the mean squared distance from the batch's own mean, so that nothing cancels.
    """
    copy = model.clone()
    values = {v.name: v for node in copy.graph for v in node.outputs if v.name in names}
    values |= {v.name: v for v in copy.graph.inputs if v.name in names}
    op = Builder(copy.graph, ROOM, copy.opset_imports[""])
    copy.graph.outputs.clear()
    for name in names:
        x = values[name]
        assert x.shape is not None
        axes = [0, *range(2, len(x.shape))]
        mean = op.ReduceMean(x, axes, keepdims=1)
        distance = op.Sub(x, mean)
        var = op.ReduceMean(op.Mul(distance, distance), axes, keepdims=0, name=f"{name}.var")
        copy.graph.outputs.extend([op.Squeeze(mean, axes, name=f"{name}.mean"), var])
    common.RemoveUnusedNodesPass()(copy)
    return copy
