"""Logits of the three forms of a bundle, in every engine at hand: `python -m benchmarks.agreement --forms`.

Each method takes five steps on a shipped net that it fits, or on the file `--net` with random samples, with ragged
batches; `sight` takes single samples.  A figure is the largest difference of a logit from the portable graphs in the
first engine, relative to the largest logit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

import ttac
from ttac.errors import RuntimeMissingError, TtacError

DEMO = Path(ttac.__file__).resolve().parent / "demo"
FORMS = ("portable", "blocked", "kernels")
NETS = {"foa": "fashion_vit", "foa-i": "fashion_vit", "ttt": "fashion_rotation"}
"""Nets of methods that do not fit the usual one."""
USUAL = "fashion_resnet_bn"
LOGITS = {"ttt": "logits"}
"""Output that the loss reads, where a net has two."""
SIZES = (8, 8, 1, 8, 3)
"""Samples of each step."""
SINGLE = ("sight",)
"""Methods that take one sample a step."""
LARGEST = 1e-4
"""Largest accepted difference, of the largest logit."""

Runs = dict[tuple[str, str], np.ndarray]


def compiled(methods: Sequence[str], folder: Path, net: Path | None = None) -> list[str]:
    """Compile the methods, and return those that have a bundle; the others are named on stderr."""
    return [method for method in methods if _is_compiled(method, folder, net)]


def _is_compiled(method: str, folder: Path, net: Path | None) -> bool:
    output, batch = folder / f"{method}.ttac", max(_sizes(method))
    options = {"calibration": DEMO / "fashion_calibration.npz", "logits": LOGITS.get(method)} if net is None else {}
    model = net or DEMO / f"{NETS.get(method, USUAL)}.onnx"
    try:
        ttac.compile(model, method=method, batch=batch, output=output, **options)
    except TtacError as error:
        print(f"{method}: {error.problem}", file=sys.stderr)
    return output.exists()


def _sizes(method: str) -> tuple[int, ...]:
    return (1,) * len(SIZES) if method in SINGLE else SIZES


def runs(folder: Path) -> tuple[str, Runs]:
    """The engine's version, and (method, form) -> logits of all steps in this process."""
    from ttac.runtime.engine_import import engine

    found: Runs = {}
    for bundle in sorted(folder.glob("*.ttac")):
        images = _images(tuple(ttac.Bundle.read(bundle).manifest["inputs"][0]["shape"][1:]))
        batches = np.split(images, np.cumsum(_sizes(bundle.stem)))[: len(SIZES)]
        for form in FORMS:
            try:
                adapter = ttac.load(bundle, form=form)
            except RuntimeMissingError:
                continue
            outputs = [adapter.step(x) for x in batches]
            logits = np.concatenate([y[LOGITS[bundle.stem]] if isinstance(y, Mapping) else y for y in outputs])
            if form in adapter.stats["form"]:
                found[bundle.stem, form] = logits
    return str(engine().__version__), found


@cache
def _images(shape: tuple[int, ...]) -> np.ndarray:
    """Noisy images of the shipped stream, or random numbers for samples of another shape."""
    if shape != (1, 28, 28):
        return np.random.default_rng(0).standard_normal((sum(SIZES), *shape), np.float32)
    with np.load(DEMO / "fashion_stream.npz") as file:
        return file["gaussian_noise"][: sum(SIZES)].reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255)


def in_engine(engine: str, folder: Path) -> tuple[str, Runs]:
    """The result of `runs` with the engine in the folder `engine`; empty for the engine of this environment."""
    path = folder / "runs.npz"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in (engine, os.environ.get("PYTHONPATH")) if p)}
    subprocess.run([sys.executable, "-m", "benchmarks.form_agreement", str(folder)], env=environment, check=True)
    with np.load(path) as file:
        found = {(name.split()[0], name.split()[1]): file[name] for name in file.files if " " in name}
        return str(file["version"]), found


def table(methods: Sequence[str], engines: Sequence[str], net: Path | None = None) -> float:
    """Print the differences of each method, engine and form; return the largest one."""
    print("| method | engine | " + " | ".join(FORMS) + " |\n|---|---|" + "---:|" * len(FORMS))
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="ttac-forms-") as name:
        made = compiled(methods, Path(name), net)
        results = [in_engine(engine, Path(name)) for engine in ("", *engines)]
        for method in made:
            expected = results[0][1][method, "portable"]
            for version, found in results:
                logits = [found.get((method, form)) for form in FORMS]
                apart = [
                    None if a is None else float(np.abs(a - expected).max() / np.abs(expected).max()) for a in logits
                ]
                worst = max([worst, *(difference for difference in apart if difference is not None)])
                cells = ["" if difference is None else f"{difference:.1e}" for difference in apart]
                print(f"| `{method}` | {version} | " + " | ".join(cells) + " |")
    return worst


if __name__ == "__main__":
    version, found = runs(Path(sys.argv[1]))
    arrays = {f"{method} {form}": logits for (method, form), logits in found.items()}
    np.savez(Path(sys.argv[1]) / "runs.npz", version=version, **arrays)
