"""One real file: its samples, and the predictions of its bundle beside those of onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort
from onnx import version_converter

from ttac.passes.verify.float64 import Float64

BATCH = 2
"""Number of samples of a step, where a file states none."""
CLOSE = 1e-5
"""Largest difference of `source` from onnxruntime, relative to the largest output, that the table calls equal."""
REFERENCE = 18
"""Opset for float64: the reference implementation of older batch norms computes the statistics of the batch."""


@dataclass(frozen=True)
class OtherInput:
    """A further input of a file: its shape, with None for the number of samples, its dtype, and its value."""

    shape: tuple[int | None, ...]
    dtype: str = "float32"
    value: float = 0.0

    def array(self, count: int) -> np.ndarray:
        """The input for `count` samples."""
        return np.full([size or count for size in self.shape], self.value, self.dtype)


@dataclass(frozen=True, kw_only=True)
class RealFile:
    """One file: its package, its path in the wheel, its digest, and the options that a user states.

    Attributes:
        sample: shape of one sample of the first input; ends: smallest and largest value of a sample.
        dtype: dtype of the samples.
        whole: whether samples of a batch influence each other, by their range or as one sequence, so that only whole
            batches compare.
        input: name of the first input, and `others`: name -> further input, in files with several.
    """

    package: str
    path: str
    digest: str
    task: str
    sample: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    ends: tuple[float, float] = (0.0, 1.0)
    dtype: str = "float32"
    input: str = ""
    others: Mapping[str, OtherInput] = field(default_factory=dict)
    whole: bool = False

    @property
    def batch(self) -> int:
        """Number of samples of a step."""
        return int(self.options.get("batch", BATCH))

    @property
    def name(self) -> str:
        """Name of the file without its suffix."""
        return Path(self.path).stem

    def samples(self, count: int) -> Any:
        """Seeded random samples [count, ...]; a dict by input names for several inputs."""
        low, high = self.ends
        x = np.random.default_rng(0).uniform(low, high, (count, *self.sample)).astype(self.dtype)
        return (
            {self.input: x, **{name: other.array(count) for name, other in self.others.items()}} if self.others else x
        )


def difference(file: RealFile, path: Path, outputs: Any, x: Any) -> str:
    """The largest difference of `outputs` from those of onnxruntime on the same samples, relative to the largest.

    Above `CLOSE`, also the differences of both from the file in float64.
    """
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 4
    session = ort.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    found = outputs if isinstance(outputs, Mapping) else {file.options.get("logits", names[0]): outputs}
    feeds = list(_feeds(file, session, x))
    singles = [_first(session.run(list(found), each), _fixed(session)) for each in feeds]
    worst, last = 0.0, ""
    for place, (key, value) in enumerate(found.items()):
        off = apart(value, [single[place] for single in singles])
        if off is None:
            return f"ok, `{key}` not comparable"
        worst, last = max((worst, last), (off, key))
    if worst <= CLOSE:
        return "ok, equal"
    exact = [_first(_exact(path)(each), _fixed(session))[names.index(last)] for each in feeds]
    theirs = [single[list(found).index(last)] for single in singles]
    ours = apart(found[last], exact)
    engine = max(apart(one, [two]) or 0.0 for one, two in zip(theirs, exact, strict=True))
    return f"ok, off {worst:.1e} (from float64: {ours:.1e}, onnxruntime {engine:.1e})"


def apart(value: np.ndarray, parts: Sequence[np.ndarray]) -> float | None:
    """The largest difference of a batch from its samples, relative to the largest value; None for other shapes."""
    axes = [axis for axis in range(value.ndim) if value.shape[axis] == len(parts) * parts[0].shape[axis]]
    if not axes:
        return None
    expected = np.concatenate(parts, axes[0]).astype(np.float64)
    return float(np.abs(value.astype(np.float64) - expected).max() / max(float(np.abs(expected).max()), 1e-6))


def _feeds(file: RealFile, session: ort.InferenceSession, x: Any) -> Iterator[dict[str, np.ndarray]]:
    """The feeds of each sample, or of the whole batch for a file that rounds by the range of a batch."""
    types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
    inputs = {value.name: types.get(value.type, np.float32) for value in session.get_inputs()}
    held = {name: np.asarray(value, inputs[name]) for name, value in file.options.get("hold", {}).items()}
    first = session.get_inputs()[0].name
    if file.whole:
        yield {**held, **(x if isinstance(x, Mapping) else {first: x})}
        return
    for place in range(file.batch):
        yield {**held, **_single(file, x, place, first, _fixed(session))}


def _fixed(session: ort.InferenceSession) -> int:
    """Number of samples that the file fixes, 1 where it is open."""
    size = session.get_inputs()[0].shape[0]
    return size if isinstance(size, int) and size > 0 else 1


def _first(arrays: Sequence[np.ndarray], fixed: int) -> list[np.ndarray]:
    """The outputs of the first sample, where the file fixes a larger number."""
    return [array[:1] if fixed > 1 else array for array in arrays]


def _single(file: RealFile, x: Any, place: int, name: str, fixed: int) -> dict[str, np.ndarray]:
    """One sample of `x` as feeds; a file that fixes a larger batch gets `fixed` copies of it."""
    if not isinstance(x, Mapping):
        return {name: x[place : place + 1].repeat(fixed, 0)}
    axes = {name: other.shape.index(None) if None in other.shape else None for name, other in file.others.items()}
    axes[file.input] = 0
    return {name: array if (axis := axes[name]) is None else array.take([place], axis) for name, array in x.items()}


def _exact(path: Path) -> Float64:
    """The file in float64, without ttac's own rooms but the execution."""
    model = ir.from_proto(version_converter.convert_version(onnx.load(path), REFERENCE))
    common.RemoveInitializersFromInputsPass()(model)
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.uses()]
    common.RemoveUnusedNodesPass()(model)
    return Float64(model)
