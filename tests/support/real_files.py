"""Small models in the form of files that people have: several outputs, odd axes for the batch, integer inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from tests.support.source_models import saved, source

Arrays = dict[str, np.ndarray]

BODY = """
  c = Conv <pads = [1, 1, 1, 1]> (x, w)
  n = BatchNormalization (c, s, b, m, v)
  r = Relu (n)
"""
POOLED = f"""{BODY}
  g = GlobalAveragePool (r)
  f = Flatten (g)
"""
TIMES = f"""{BODY}
  g = ReduceMean <axes = [2], keepdims = 0> (r)
  t = Transpose <perm = [2, 0, 1]> (g)
  h = MatMul (t, wf)
"""
"""[T, N, 5] from an image [N, 3, H, T]."""


def weights(seed: int = 0) -> Arrays:
    """Return the weights of `BODY` and of linear layers of 5 and 4 features."""
    random = np.random.default_rng(seed)

    def some(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    return {
        "w": some(8, 3, 3, 3),
        "s": 1 + some(8) / 3,
        "b": some(8),
        "m": some(8),
        "v": some(8) ** 2 + np.float32(0.5),
        "wf": some(8, 5),
        "wb": some(8, 4),
    }


def written(folder: Path, signature: str, nodes: str, more: Mapping[str, np.ndarray] | None = None) -> Path:
    """Write a model with the weights that its nodes read; `signature` is like `(float[N,3,8,8] x) => (float[N,5] y)`."""
    known = {**weights(), **(more or {})}
    used = {
        name: array for name, array in known.items() if any(name in line.split("(")[-1] for line in nodes.split("\n"))
    }
    return saved(source(f"m {signature} {{ {nodes} }}", used, opset=15), folder)


def plain(path: Path, x: np.ndarray | Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> Arrays:
    """Return the outputs of onnxruntime for the file, by name."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = x if isinstance(x, Mapping) else {session.get_inputs()[0].name: x}
    names = names or [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Return standard normal samples, float32 [count, *shape], by default [count, 3, 8, 8]."""
    return np.random.default_rng(seed).standard_normal((count, *(shape or (3, 8, 8)))).astype(np.float32)


def opset_of(path: Path) -> int:
    """Return the opset of the file."""
    return int(onnx.load(str(path), load_external_data=False).opset_import[0].version)
