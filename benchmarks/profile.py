"""Milliseconds per operator and graph of a step, by the profiler of the engine.

`python -m benchmarks.profile resnet50 --form kernels` compiles `tent` for the network and profiles five steps after
two others.  The bundle stays in `--folder` for the next call.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from safetensors.numpy import load_file

from benchmarks.forms import FORMS, bundle_of
from benchmarks.networks import NETWORKS
from ttac.runtime.form_table import FormSpec, parse_forms
from ttac.runtime.forms import form_weights, probe_failure
from ttac.runtime.kernel_library import kernel_library
from ttac.spec import Word, walk

WARM_UP, STEPS, ROWS, THREADS = 2, 5, 12, 2


def profile(bundle: Path, batch: int, form: str, *, shapes: bool = False) -> dict[str, Counter[str]]:
    """Return graph -> operator -> milliseconds per step; the stages of the backward count as one graph.

    With `shapes`, the shapes of the first two inputs are part of an operator's name.  Raises SystemExit if no such form
    runs here.
    """
    manifest = json.loads((bundle / "manifest.json").read_text())
    spec = form_of(bundle, manifest, form)
    size = manifest["inputs"][0]["shape"][1:]
    images = np.random.default_rng(0).standard_normal((batch, *size), dtype=np.float32)
    values: dict[str, Any] = {manifest["inputs"][0]["name"]: images}
    values |= load_file(bundle / "state.safetensors") | load_file(bundle / "weights.safetensors")
    if spec is not None:
        values |= form_weights(values, spec, bundle)
    library = kernel_library(spec.kernels).path if spec is not None and spec.kernels else None
    graphs: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in runs_of(manifest["programs"]["step"]):
            file = spec.graphs.get(name) if spec is not None else None
            session = _profiling(bundle / (file or f"{name}.onnx"), Path(folder) / name, library)
            feed = {v.name: ort.OrtValue.ortvalue_from_numpy(values[v.name]) for v in session.get_inputs()}
            names = [value.name for value in session.get_outputs()]
            for step in range(WARM_UP + STEPS):
                outputs = session.run_with_ort_values(names, feed)
                arrays = [value.numpy() for value in outputs] if step == WARM_UP + STEPS - 1 else []
                del outputs  # the next step's outputs take the same memory, as in an adapter
            values |= dict(zip(names, arrays, strict=True))
            counts = graphs.setdefault(name.split("-")[0], Counter())
            for operator, microseconds in _kernels(Path(session.end_profiling()), shapes):
                counts[operator] += microseconds / 1e3 / STEPS
    return graphs


def runs_of(words: Sequence[Word]) -> list[str]:
    """The graphs of a program in their order, once each; branches too."""
    return list(dict.fromkeys(word["run"] for word in walk(words) if "run" in word))


def form_of(bundle: Path, manifest: dict[str, Any], form: str) -> FormSpec | None:
    """The first form of this kind that runs here; None for the portable graphs."""
    if form == "portable":
        return None
    entries = manifest.get("forms", [])
    for spec in parse_forms(entries, manifest["files"], manifest["graphs"]):
        if bool(spec.kernels) == (form == "kernels") and not probe_failure(bundle / spec.probe, spec.kernels):
            return spec
    raise SystemExit(f"no form {form} of `{bundle}` runs here")


def _profiling(path: Path, prefix: Path, library: Path | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if library is not None:
        options.register_custom_ops_library(str(library))
    options.intra_op_num_threads = THREADS
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _kernels(path: Path, shapes: bool) -> Iterator[tuple[str, float]]:
    """Operators and their microseconds; the first steps, in which memory comes from the system, are left out."""
    events = [event for event in json.loads(path.read_text()) if event.get("cat") == "Node"]
    runs = [event for event in events if event["name"].endswith("kernel_time")]
    for event in runs[len(runs) * WARM_UP // (WARM_UP + STEPS) :]:
        of = event["args"]["input_type_shape"][:2] if shapes else []
        sizes = ["x".join(map(str, size)) for each in of for size in each.values()]
        yield " ".join([event["args"]["op_name"], *sizes]), event["dur"]


def main() -> None:
    """Profile the network on the command line and print the slowest operators."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--form", choices=FORMS, default="portable")
    parser.add_argument("--method", default="tent")
    parser.add_argument("--train", default="norms", help="as for `ttac compile`")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--shapes", action="store_true", help="tell operators apart by the shapes of their inputs")
    parser.add_argument("--folder", type=Path, default=Path("build/forms"))
    options = parser.parse_args()
    bundle = bundle_of(options.network, options.batch, options.folder, options.method, options.train)
    for graph, counts in profile(bundle, options.batch, options.form, shapes=options.shapes).items():
        total = sum(counts.values())
        print(f"{graph}: {total:.1f} ms")
        for operator, spent in counts.most_common(ROWS):
            print(f"  {operator:<40} {spent:8.2f} ms  {spent / total:5.1%}")


if __name__ == "__main__":
    main()
