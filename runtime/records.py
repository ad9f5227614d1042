"""Records of a manifest, and the words that its entries may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ttac.runtime.form_table import FormSpec
from ttac.runtime.program.words import Word

SOURCE = "infer.onnx"
"""The graph of the source model, which keeps the metadata of the file."""
WEIGHTS = "weights.safetensors"
BATCH_AXIS = "N"
DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool")
ROLES = ("parameter", "optimizer", "statistic", "counter", "sparsity")
OPTIMIZATIONS = ("basic", "extended", "all")
HEADS = ("classes", "binary", "dense", "detection", "ctc")
VALUES = ("logits", "probabilities", "log_probabilities")
COUNTED = ("steps", "samples", "rejected", "resets", "not_finite", "milliseconds", "form", "form_reason")
"""Names in `adapter.stats` that a graph's scalars may not take."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor; `N` in the shape is the batch axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def batch_axis(self) -> int | None:
        """The axis with one entry for each sample; None where the tensor has none."""
        return self.shape.index(BATCH_AXIS) if BATCH_AXIS in self.shape else None


@dataclass(frozen=True)
class SizeSpec:
    """An open size of the inputs: a multiple of `multiple`, from `smallest` to `largest`."""

    largest: int
    multiple: int
    smallest: int = 1


@dataclass(frozen=True)
class GraphSpec:
    """One graph of the program.

    Attributes:
        name: the key in the manifest.
        file: name of the `.onnx` file.
        state: graph output -> state tensor that the output becomes at the commit.
        stats: graph output -> name under which `adapter.stats` reports the output.
        optimization: the engine's level for this graph, empty for the engine's default.
    """

    name: str
    file: str
    state: Mapping[str, str]
    stats: Mapping[str, str]
    optimization: str = ""


@dataclass(frozen=True)
class HeadSpec:
    """Reading of one output.

    Attributes:
        kind: one of `HEADS`: a class of each sample, yes-or-no answers, a class at each position, scores of boxes,
            characters of frames.
        axis: axis of the classes or answers in the output, None if each position has one number.
        values: one of `VALUES`, the meaning of the numbers.
        output: name of the output; empty in a reading without a model.
        first, count: position of the first score along the axis, and number of scores; None for all numbers.
        objectness: whether the first score says whether there is an object at all.
        ignored: class of the background or the blank; None if there is none.
        mask, counts: input [N, ...] that says which positions are padding, and its truth value where a position counts;
            empty if all positions count.
        boxes: name of another output with the boxes of the scores; empty without one.
    """

    kind: str
    axis: int | None
    values: str
    output: str = ""
    first: int = 0
    count: int | None = None
    objectness: bool = False
    ignored: int | None = None
    mask: str = ""
    counts: bool = True
    boxes: str = ""


@dataclass(frozen=True)
class Manifest:
    """The part of a manifest that the runtime uses; `raw` is all of it."""

    raw: Mapping[str, Any]
    identity: str
    threads: int
    files: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    head: HeadSpec | None
    planned: int
    smallest: int
    state_file: str
    state: Mapping[str, TensorSpec]
    graphs: Mapping[str, GraphSpec]
    programs: Mapping[str, tuple[Word, ...]]
    forms: tuple[FormSpec, ...] = ()
    sizes: Mapping[str, SizeSpec] = field(default_factory=dict)
    providers: tuple[str, ...] = ()

    def largest(self, spec: TensorSpec) -> tuple[int | str, ...]:
        """The shape of an input with its largest sizes."""
        sizes = self.sizes
        return tuple(sizes[size].largest if isinstance(size, str) and size in sizes else size for size in spec.shape)

    @property
    def output(self) -> TensorSpec:
        """The output that the head describes; the first output without a head."""
        return next((spec for spec in self.outputs if self.head and spec.name == self.head.output), self.outputs[0])
