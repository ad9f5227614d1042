"""Peak working memory of PyTorch and of plain inference, by the protocol that `ttac.measure` uses for bundles.

Runs in a process of its own: `python -m benchmarks.memory pytorch resnet50 8`, `... inference model.onnx 8`.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ttac.measure import CLEAR, kilobytes


def measured(what: str, subject: str, batch: int) -> dict[str, Any]:
    """Bytes `peak` and `loaded` of TENT in PyTorch on a network, or of plain inference of an ONNX file."""
    command = [sys.executable, "-m", "benchmarks.memory", what, subject, str(batch)]
    report: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return report


def pytorch(network: str) -> tuple[Callable[[np.ndarray], object], tuple[int, ...]]:
    """TENT with SGD (no memory of its own) on the network; the step, and the shape of an image."""
    import torch

    from benchmarks.networks import build
    from benchmarks.pytorch_peers import Tent

    torch.set_num_threads(2)
    model, side = build(network)
    tent = Tent(model)
    return lambda images: tent.step(torch.from_numpy(images)), (3, side, side)


def inference(path: str) -> tuple[Callable[[np.ndarray], object], tuple[int, ...]]:
    """Plain inference of the file on the engine, as a user would call it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    return lambda images: session.run(None, {taken.name: images}), tuple(taken.shape[1:])


def main() -> None:
    """Measure what the command line names and print it as JSON."""
    what, subject, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if what == "pytorch":
        import torch  # noqa: F401
    else:
        import onnxruntime  # noqa: F401
    bare = kilobytes("VmRSS")
    step, shape = {"pytorch": pytorch, "inference": inference}[what](subject)
    images = np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)
    for _ in range(2):
        step(images[:1])
    gc.collect()
    CLEAR.write_text("5")
    before = kilobytes("VmRSS")
    for _ in range(10):
        step(images)
    print(json.dumps({"peak": 1024 * (kilobytes("VmHWM") - before), "loaded": 1024 * (before - bare)}))


if __name__ == "__main__":
    main()
