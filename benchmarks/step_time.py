"""Time of a `tent` step against plain inference of the same file and TENT in PyTorch: paired, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

import ttac
from benchmarks.memory import measured
from benchmarks.networks import build
from benchmarks.pytorch_peers import Tent
from ttac.measure import measure

THREADS, WARM_UP, PAIRS = 2, 2, 9


def export(name: str, folder: Path) -> Path:
    """The named network as an ONNX file that keeps its norms, the batch symbolic."""
    path = folder / f"{name}.onnx"
    model, side = build(name)
    torch.onnx.export(
        model,
        (torch.randn(2, 3, side, side),),
        str(path),
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        opset_version=17,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
    )
    return path


def row(name: str, folder: Path, batch: int = 8) -> dict[str, Any]:
    """All figures of one network: milliseconds, ratios to plain inference, and bytes."""
    torch.set_num_threads(THREADS)
    path = export(name, folder)
    start = time.perf_counter()
    bundle = ttac.compile(path, method="tent", target="cpu", batch=batch, output=folder / f"{name}.ttac")
    compiled = time.perf_counter() - start
    assert bundle.path is not None
    adapter = ttac.load(bundle.path, threads=THREADS)
    session, tent = plain(path), Tent(build(name)[0])
    images = np.random.default_rng(0).standard_normal((batch, *adapter.input_shape), dtype=np.float32)
    tensor = torch.from_numpy(images)
    times = interleaved(
        inference=lambda: session.run(None, {"x": images}),
        ttac=lambda: adapter.step(images),
        pytorch=lambda: tent.step(tensor),
    )
    ours = measure(bundle.path, threads=THREADS) or {}
    return {
        "network": name,
        "batch": batch,
        "compile_seconds": compiled,
        "nodes": sum(len(ort_nodes(file)) for file in bundle.path.glob("*.onnx")),
        "milliseconds": {key: 1e3 * float(np.median(value)) for key, value in times.items()},
        "ratio": {key: ratio(times[key], times["inference"]) for key in ("ttac", "pytorch")},
        "residual_bytes": bundle.report["planned"]["residuals"],
        "peak": {
            "inference": measured("inference", str(path), batch)["peak"],
            "ttac": ours.get("peak"),
            "pytorch": measured("pytorch", name, batch)["peak"],
        },
        "loaded": ours.get("loaded"),
    }


def ort_nodes(path: Path) -> list[Any]:
    """The nodes of an ONNX file."""
    import onnx

    return list(onnx.load(str(path), load_external_data=False).graph.node)


def plain(path: Path) -> ort.InferenceSession:
    """The engine on the source file with its own best settings, but threads that sleep between calls.

    Polling threads of three engines in one process would take the cores from each other.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def interleaved(**work: Callable[[], object]) -> dict[str, np.ndarray]:
    """Seconds of each piece of work, run in turn: element i of every array is from the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(WARM_UP + PAIRS):
        for name, action in work.items():
            start = time.perf_counter()
            action()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(work: np.ndarray, base: np.ndarray) -> float:
    """Median over the rounds of the paired ratio."""
    return float(np.median(work / base))
