"""The round trip of a codec in a graph, and values that are hard to save."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.support.whole_models import SINGLE, Arrays, spelled
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.graph.execute import Executable
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.operators.random_numbers import Numbers, seeded
from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.codecs.codec import Codec, KeepRatio
from ttac.passes.plan.keep_ratios import drawn

PLANNED = 8
"""Samples that the bytes are promised for; fewer must do as well."""


SHAPES = {
    "maps": (4, 8, 8), "odd maps": (3, 5, 7), "long rows": (2, 40, 40), "tokens": (5, 16), "sequence": (3, 30),
    "features": (24,), "odd": (9,), "one": (1,),
}  # fmt: skip


def values(kind: str, shape: Sequence[int]) -> np.ndarray:
    """float32 [*shape] of a kind."""
    random = np.random.default_rng(len(kind))
    x = random.normal(size=shape).astype(np.float32)
    rows = x.reshape(-1, shape[-1])
    if kind == "zero":
        x[...] = 0
    elif kind == "zero rows":
        rows[::2] = 0
    elif kind == "constant rows":
        rows[...] = np.arange(1, len(rows) + 1, dtype=np.float32)[:, None] - 2.5
    elif kind == "relu":
        x = np.maximum(x, 0)
    elif kind == "far from zero":
        x += 40
    elif kind == "below zero":
        x -= 40
    elif kind == "huge":
        x *= 1e12
    elif kind == "small":
        x *= 1e-12
    elif kind == "uneven":
        rows *= (10.0 ** np.linspace(-6, 4, len(rows)))[:, None].astype(np.float32)
    return x


KINDS = ("normal", "zero", "zero rows", "constant rows", "relu", "far from zero", "below zero", "huge", "small", "uneven")  # fmt: skip


@dataclass(frozen=True)
class Built:
    """Save and restore of one codec in one graph, for samples of a shape."""

    codec: Codec
    x: ir.Value
    executable: Executable

    def __call__(self, x: np.ndarray, keep: float = 1.0) -> Arrays:
        """Outputs: `saved.0`, ..., `restored`."""
        return self.executable({"x": x, "keep": np.array(keep, np.float32)})

    def saved(self, found: Arrays) -> list[np.ndarray]:
        return [found[f"saved.{i}"] for i in range(1 + len(self.codec.parts))]


@cache
def built(name: str, shape: tuple[int, ...]) -> Built:
    """The round trip of the codec `name`."""
    codec = CODECS[name]
    x = ir.val("x", ir.DataType.BOOL if name == "bits" else SINGLE, ["N", *shape])
    keep = ir.val("keep", SINGLE, [])
    graph = ir.Graph([x, keep], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="trip")
    op = Builder(graph, "test")
    order = drawn(Numbers(op, op.constant(seeded(0))), 0, shape[0])
    saved = list(codec.encode(op, x, KeepRatio(keep, keep, order) if codec.drops else None))
    assert len(saved) == 1 + len(codec.parts)
    restored = codec.decode(op, saved, x)
    assert restored.dtype == x.dtype and str(restored.shape) == str(x.shape), "the readers see the type of the value"
    names = {f"saved.{i}": value for i, value in enumerate(saved)} | {"restored": restored}
    for title, value in names.items():
        graph.outputs.append(op.Identity(value, name=title, like=value))
    with tempfile.TemporaryDirectory() as folder:
        write_graphs(Path(folder), {"trip": spelled(ir.Model(graph, ir_version=8))})
        return Built(codec, x, Executable(Path(folder) / "trip.onnx"))


KEEPS = (0.0, 0.1, 0.5, 0.93, 1.0)


def with_means(x: np.ndarray, size: int) -> np.ndarray:
    """Every block of `size` elements as its mean, float64 in the shape of `x`."""
    blocks = x.astype(np.float64).reshape(-1, size)
    return np.broadcast_to(blocks.mean(1, keepdims=True), blocks.shape).reshape(x.shape)
