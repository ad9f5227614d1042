"""Seconds of each room of a compile, for nets of growing depth: `python -m benchmarks.compile_time [DEPTHS]`.

The net is a residual net of constant width, so that its depth changes the number of nodes only.  It is written as an
ONNX file without torch.  Memory is not measured, and weights and images are small, so the compiler takes all the time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import onnxruntime  # noqa: F401  (imported before the clock starts)
from onnx_ir import save

import ttac
from ttac import finish
from ttac.passes.graph.builder import Builder

DEPTHS = (1, 2, 4, 8, 36)
BLOCKS = 8
"""Number of residual blocks at depth 1, with the convolutions of a ResNet-18; depth 36 has over two thousand nodes."""
WIDTH, SIDE, CLASSES = 16, 8, 10


def write_net(path: Path, blocks: int) -> int:
    """Write a residual net of `blocks` blocks, and return its number of nodes."""
    random = np.random.default_rng(0)
    x = ir.val("x", ir.DataType.FLOAT, ["N", 3, SIDE, SIDE])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="net")
    op = Builder(graph, "net")

    def weight(*shape: int) -> np.ndarray:
        return random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)

    def conv_norm(value: ir.Value, cin: int) -> ir.Value:
        product = op.Conv(value, weight(WIDTH, cin, 3, 3), pads=[1, 1, 1, 1])
        scale, bias, mean, var = (random.uniform(0.5, 1.5, WIDTH).astype(np.float32) for _ in range(4))
        normed: ir.Value = op.BatchNormalization(product, scale, bias, mean, var)
        return normed

    value = op.Relu(conv_norm(x, 3))
    for _ in range(blocks):
        branch = conv_norm(op.Relu(conv_norm(value, WIDTH)), WIDTH)
        value = op.Relu(op.Add(branch, op.Mul(value, 0.5)))
    pooled = op.Flatten(op.GlobalAveragePool(value))
    graph.outputs.append(op.MatMul(pooled, weight(WIDTH, CLASSES), name="logits"))
    save(ir.Model(graph, ir_version=8), path)
    return len(graph)


class Clock:
    """Seconds by room: a room takes the time between the line before and its own line."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, line: str) -> None:
        now = time.perf_counter()
        if line[:1] != " ":
            room = line.split()[0]
            self.seconds[room] = self.seconds.get(room, 0.0) + now - self.last
            self.last = now


def timed(path: Path, folder: Path) -> dict[str, float]:
    """Return the seconds of each room, of all rooms, and of the processor, which a busy machine does not lengthen."""
    clock = Clock()
    start, busy = time.perf_counter(), time.process_time()
    ttac.compile(path, output=folder / "net.ttac", batch=8, say=clock)
    return {**clock.seconds, "all": time.perf_counter() - start, "cpu": time.process_time() - busy}


def rows(depths: Sequence[int] = DEPTHS) -> Iterator[dict[str, float]]:
    """Yield for each depth its number of nodes, and the seconds of `timed`."""
    with tempfile.TemporaryDirectory() as name, patch.object(finish, "measure", return_value=None):
        folder = Path(name)
        write_net(folder / "warm.onnx", 1)
        timed(folder / "warm.onnx", folder)
        for depth in depths:
            nodes = write_net(folder / "net.onnx", BLOCKS * depth)
            yield {"depth": depth, "nodes": nodes, **timed(folder / "net.onnx", folder)}


def main() -> None:
    """Print a table: one row per depth, one column per room."""
    for number, row in enumerate(rows([int(text) for text in sys.argv[1:]] or DEPTHS)):
        depth, nodes, *seconds = row.values()
        if number == 0:
            print(f"{'depth':>5} {'nodes':>6} " + " ".join(f"{room:>9}" for room in list(row)[2:]) + " us/node")
        figures = " ".join(f"{value:9.3f}" for value in seconds)
        print(f"{depth:5.0f} {nodes:6.0f} {figures} {1e6 * row['all'] / nodes:7.0f}", flush=True)


if __name__ == "__main__":
    main()
