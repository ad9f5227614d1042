"""Milliseconds per operator and graph of a step, by the profiler of the engine.

`python -m benchmarks.profile resnet50` compiles `tent` for the network and profiles five steps.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import ttac
from benchmarks.exporting import export

STEPS, ROWS, THREADS = 5, 12, 2


def profile(bundle: Path, batch: int) -> dict[str, Counter[str]]:
    """Return graph -> operator -> milliseconds per step; the stages of the backward count as one graph."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    adapter = ttac.load(bundle, threads=THREADS)
    images = np.random.default_rng(0).standard_normal((batch, *adapter.input_shape), dtype=np.float32)
    values: dict[str, Any] = {manifest["inputs"][0]["name"]: images}
    for file in ("state.safetensors", "weights.safetensors"):
        from safetensors.numpy import load_file

        values |= load_file(bundle / file)
    graphs: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for word in manifest["programs"]["step"]:
            if "run" in word:
                session = _profiling(bundle / f"{word['run']}.onnx", Path(folder) / word["run"])
                feed = {value.name: values[value.name] for value in session.get_inputs()}
                for _ in range(STEPS):
                    outputs = session.run(None, feed)
                values |= dict(zip((value.name for value in session.get_outputs()), outputs, strict=True))
                counts = graphs.setdefault(word["run"].split("-")[0], Counter())
                for operator, microseconds in _kernels(Path(session.end_profiling())):
                    counts[operator] += microseconds / 1e3 / STEPS
    return graphs


def _profiling(path: Path, prefix: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _kernels(path: Path) -> Iterator[tuple[str, float]]:
    for event in json.loads(path.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            yield event["args"]["op_name"], event["dur"]


def main() -> None:
    """Profile the network on the command line and print the slowest operators."""
    name, batch = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle.ttac"
        ttac.compile(export(name, Path(folder)), method="tent", batch=batch, settings={"guard": "off"}, output=bundle)
        for graph, counts in profile(bundle, batch).items():
            total = sum(counts.values())
            print(f"{graph}: {total:.1f} ms")
            for operator, spent in counts.most_common(ROWS):
                print(f"  {operator:<20} {spent:8.2f} ms  {spent / total:5.1%}")


if __name__ == "__main__":
    main()
