"""8-bit bundles against 8-bit and float inference: `python -m benchmarks.int8 [NETWORK ...] [--write docs/int8.md]`.

Time: all rivals run in turn in one process at batch 1, first with one thread (processor time), then with two (wall
time); the figures are medians of the paired ratios.
Rivals: float inference of the source file; the same file with folded norms from onnxruntime's `quantize_static`; ttac's
bundle of method `source` (static 8-bit inference); bundles that adapt all norms, or 30 % of them.

Error: the shipped Fashion-MNIST net and stream, each method in float and in 8 bits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import ttac
from benchmarks.exporting import export
from benchmarks.networks import NETWORKS
from ttac.evaluation.machine import about
from ttac.passes.quantize.ranges import _calibrators
from ttac.reports.measure import measure

NAMES = ("resnet18_32", "resnet18", "mobilenet_v2")
SHARES = {"all": "norms", "first 30 %": "first:30%", "last 30 %": "last:30%", "auto 30 %": "auto:30%@20%"}
FORMS = {"portable": "", "kernels": ", kernels"}
"""Form of a bundle that adapts -> the end of its name in the table."""
METHOD = "leantta"
SAMPLES = 16
WARM_UP, TURNS = 3, 25
READING = f"""\
Batch 1, random weights, method `{METHOD}`. Ratios are medians of {TURNS} paired runs in one process, of processor time
with one thread and of wall time with two; on cores that do other work too, read those and not the milliseconds.
`auto 30 %` is `--train auto:30%@20%`: at most 30 % of the norms, seeing at most 20 % of the values. `kernels` are norms
that read bytes, with `ttac-kernels`; the other rows run on the engine's own operators. `loaded MB` is the growth of the
process by the load and two steps, `peak MB` its further growth by ten steps."""
DEMO = Path(ttac.__file__).parent / "demo"


def row(name: str, folder: Path, threads: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """Return all figures of one network."""
    path = export(name, folder)
    side = NETWORKS[name][1]
    samples = np.random.default_rng(0).standard_normal((SAMPLES, 3, side, side), dtype=np.float32)
    static = made(path, folder / "static.ttac", samples, method="source")
    bundles = {share: made(path, folder / f"{share}.ttac", samples, train=train) for share, train in SHARES.items()}
    oracle = quantized(path, folder, samples)
    times = {count: timed(path, oracle, static, bundles, samples[:1], count) for count in threads}
    kernels = weights_bytes(static)
    return {
        "network": name,
        "times": times,
        "adapting": {share: len(bundle.manifest["sites"]) for share, bundle in bundles.items()},
        "int8_bytes": kernels,
        "bytes": {"static": size(static), **{share: size(bundle) for share, bundle in bundles.items()}},
        "oracle_bytes": oracle.stat().st_size,
        "memory": {share: measure(place(bundle), threads=1) for share, bundle in {"static": static, **bundles}.items()},
    }


def made(path: Path, output: Path, samples: np.ndarray, *, method: str = METHOD, train: str = "norms") -> ttac.Bundle:
    """Compile an 8-bit bundle for single samples."""
    return ttac.compile(
        path, method=method, target="cpu", batch=1, quantize="int8", calibration=samples, train=train, output=output
    )


def quantized(path: Path, folder: Path, samples: np.ndarray) -> Path:
    """Quantize the file with onnxruntime: folded norms, uint8 activations, int8 kernels per channel."""
    from ttac.passes.graph.graph_files import write_graphs
    from ttac.passes.load.model_file import load
    from ttac.passes.normalise.normal_form import normalise
    from ttac.passes.quantize.fold import fold_norms

    _calibrators()
    from onnxruntime import quantization

    model = normalise(load(path))
    fold_norms(model, ())
    write_graphs(folder, {"folded": model})

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([{model.graph.inputs[0].name: samples}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    output = folder / "oracle.onnx"
    quantization.quantize_static(
        str(folder / "folded.onnx"),
        str(output),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    return output


def timed(
    path: Path, oracle: Path, static: ttac.Bundle, bundles: Mapping[str, ttac.Bundle], x: np.ndarray, threads: int
) -> dict[str, Any]:
    """Return milliseconds of each rival, and medians of the paired ratios to static 8-bit and to float inference."""
    work: dict[str, Callable[[], object]] = {
        "float32": inference(path, x, threads),
        "quantize_static": inference(oracle, x, threads),
        "static": step(static, x, threads),
        **{
            f"{share}{words}": step(bundle, x, threads, form)
            for share, bundle in bundles.items()
            for form, words in FORMS.items()
        },
    }
    times = interleaved(work, time.process_time if threads == 1 else time.perf_counter)
    return {
        name: {
            "milliseconds": 1e3 * float(np.median(seconds)),
            "of_static": float(np.median(seconds / times["static"])),
            "of_float32": float(np.median(seconds / times["float32"])),
        }
        for name, seconds in times.items()
    }


def inference(path: Path, x: np.ndarray, threads: int) -> Callable[[], object]:
    """Return a run of the engine on a file, with default settings except for threads that sleep between calls."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})


def step(bundle: ttac.Bundle, x: np.ndarray, threads: int, form: str = "portable") -> Callable[[], object]:
    """Return a step of a bundle in one form of its graphs."""
    adapter = ttac.load(place(bundle), threads=threads, form=form)
    return lambda: adapter.step(x)


def interleaved(work: Mapping[str, Callable[[], object]], clock: Callable[[], float]) -> dict[str, np.ndarray]:
    """Return the seconds of each rival, run in turn: element i of every array is from the same turn."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(WARM_UP + TURNS):
        for name, action in work.items():
            start = clock()
            action()
            if turn >= WARM_UP:
                seconds[name].append(clock() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def place(bundle: ttac.Bundle) -> Path:
    """Return the folder of a written bundle."""
    assert bundle.path is not None
    return bundle.path


def size(bundle: ttac.Bundle) -> int:
    """Return the bytes of all files of a bundle."""
    return sum(file.stat().st_size for file in place(bundle).iterdir())


def weights_bytes(bundle: ttac.Bundle) -> int:
    """Return the bytes of the 8-bit kernels."""
    from safetensors.numpy import load_file

    arrays = load_file(place(bundle) / "weights.safetensors")
    return sum(array.nbytes for array in arrays.values() if array.dtype == np.int8)


def errors(method: str, train: str, quantize: str | None, batch: int, folder: Path) -> dict[str, float]:
    """Return the per cent of wrong predictions of the demo's net on each corruption of the shipped stream."""
    bundle = ttac.compile(
        DEMO / "fashion_resnet_bn_unfolded.onnx",
        method=method,
        target="cpu",
        batch=batch,
        quantize=quantize,
        train=train,
        calibration=DEMO / "fashion_calibration.npz",
        output=folder / f"{method}-{train.replace(':', '')}-{quantize}.ttac",
    )
    adapter = ttac.load(place(bundle))
    stream = np.load(DEMO / "fashion_stream.npz")
    labels = stream["labels"]
    wrong = {}
    for name in [name for name in stream.files if stream[name].ndim == 4]:
        images = (stream[name] / 255).astype(np.float32)
        adapter.reset()
        logits = [adapter.step(images[i : i + batch]) for i in range(0, len(images), batch)]
        wrong[name] = 100 * float(np.mean(np.concatenate(logits).argmax(axis=1) != labels))
    return wrong


def error_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the errors of each method in float and in 8 bits."""
    cases = (("source", "norms", 64), ("bn", "norms", 64), (METHOD, "norms", 1), (METHOD, "first:30%", 1))
    rows = []
    for method, train, batch in cases:
        full, rounded = (errors(method, train, quantize, batch, folder) for quantize in (None, "int8"))
        rows.append({"method": method, "train": train, "batch": batch, "float32": full, "int8": rounded})
    return rows


def page(rows: list[dict[str, Any]], wrong: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    facts = about(2)
    lines = [
        "# 8-bit bundles",
        "",
        f"Made by `python -m benchmarks.int8 --write docs/int8.md` on {facts['date']}: {facts['machine']};",
        f"{facts['packages']}.",
        "",
        *READING.splitlines(),
        "",
        "| network | threads | runs | norms adapted | ms | of static int8 | of float32 |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in rows:
        for threads, times in entry["times"].items():
            for name, time_of in times.items():
                count = entry["adapting"].get(name.removesuffix(FORMS["kernels"]), 0)
                figures = f"{time_of['milliseconds']:.2f} | {time_of['of_static']:.2f} | {time_of['of_float32']:.2f}"
                lines.append(f"| {entry['network']} | {threads} | {name} | {count} | {figures} |")
    lines += ["", "| network | bundle | MB | of int8 kernels | of quantize_static's file | loaded MB | peak MB |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for entry in rows:
        for name, total in entry["bytes"].items():
            ratios = f"{total / entry['int8_bytes']:.3f} | {total / entry['oracle_bytes']:.3f}"
            memory = entry["memory"][name] or {"loaded": 0, "peak": 0}
            kept = f"{memory['loaded'] / 1e6:.1f} | {memory['peak'] / 1e6:.1f}"
            lines.append(f"| {entry['network']} | {name} | {total / 1e6:.2f} | {ratios} | {kept} |")
    return "\n".join([*lines, "", *_error_lines(wrong), ""])


def _error_lines(wrong: list[dict[str, Any]]) -> list[str]:
    names = list(wrong[0]["float32"]) if wrong else []
    lines = ["Error in percent on the shipped stream, float32 / int8:", ""]
    lines += ["| method | adapts | batch | " + " | ".join([*names, "mean"]) + " |", "|---" * (len(names) + 4) + "|"]
    for entry in wrong:
        pairs = [(entry["float32"][name], entry["int8"][name]) for name in names]
        pairs.append((float(np.mean(list(entry["float32"].values()))), float(np.mean(list(entry["int8"].values())))))
        cells = " | ".join(f"{plain:.1f} / {rounded:.1f}" for plain, rounded in pairs)
        lines.append(f"| {entry['method']} | {entry['train']} | {entry['batch']} | {cells} |")
    return lines


def main() -> None:
    """Measure the networks on the command line, all by default, and the error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8", description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"some of {', '.join(NAMES)}; all by default")
    parser.add_argument("--no-error", action="store_true", help="leave out the error on the shipped stream")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page as Markdown")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in asked.networks or NAMES:
        with tempfile.TemporaryDirectory(prefix="ttac-bench-") as folder:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(row(name, Path(folder)))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="ttac-bench-") as folder:
        wrong = [] if asked.no_error else error_rows(Path(folder))
    text = page(rows, wrong)
    print(text)
    if asked.write:
        asked.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
