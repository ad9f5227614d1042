"""The smallest sizes at which a bundle with open sizes works: `python -m ttac.size_trials BUNDLE FOLDER`.

An engine may not only refuse a size that is too small: a process may end in it.  So a child process runs the bundle.
It reads a line of sizes and answers `yes` or `no`, and the parent takes its end for a `no`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.bundle_content import BundleContent, OpenSize
from ttac.child_process import start_module
from ttac.open_sizes import compared_sizes
from ttac.passes.graph.execute import Executable, rows
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.sample_set import SampleSet
from ttac.passes.load.input_axes import axes_of
from ttac.passes.verify.compare import relative_outputs
from ttac.runtime.adapter import Adapter
from ttac.runtime.manifest import parse_manifest

AGREED = 1e-4
"""Largest relative difference between the bundle without adaptation and the file, at every size that works."""
SECONDS = 600.0
"""Longest time of a trial; a size that takes longer, such as one whose kernel never ends, does not work."""
RAISED = (0.0, 0.1, 0.25, 0.5)
"""Parts of the way back to the first sizes, where the smallest of each do not work together."""
Sizes = Mapping[str, int]


def with_smallest(content: BundleContent, folder: Path) -> BundleContent:
    """Return the content with the smallest value of each open size at which the bundle in `folder` works.

    A size works if a step runs, and the model without adaptation gives the numbers of the file.
    """
    multiple = content.sizes[0].multiple
    compared = list(compared_sizes({size.name: size.largest for size in content.sizes}, multiple))
    start = {size.name: min(sizes[size.name] for sizes in compared) for size in content.sizes}
    with (
        tempfile.TemporaryDirectory(prefix="ttac-") as scratch,
        contextlib.closing(_Trials(folder, _prepared(content, Path(scratch)))) as trials,
    ):
        least = {size.name: _least(trials, start, size) for size in content.sizes}
        raised = (_between(least, start, part, multiple) for part in RAISED)
        found = next((sizes for sizes in raised if trials.works(sizes)), start)
    return replace(content, sizes=[replace(size, smallest=found[size.name]) for size in content.sizes])


def _least(trials: _Trials, start: Sizes, size: OpenSize) -> int:
    """Return the smallest size that works with the others at their first values, found by halving."""
    low, high = 0, start[size.name] // size.multiple
    while high - low > 1:
        middle = (low + high) // 2
        if trials.works({**start, size.name: middle * size.multiple}):
            high = middle
        else:
            low = middle
    return high * size.multiple


def _between(least: Sizes, start: Sizes, part: float, multiple: int) -> dict[str, int]:
    """Return the sizes at a part of the way from `least` to `start`, each a multiple."""
    return {name: low + round((start[name] - low) * part / multiple) * multiple for name, low in least.items()}


def _prepared(content: BundleContent, folder: Path) -> Path:
    """Write the model as loaded, and samples of the largest size, for the child."""
    state = content.state
    count = 1 if state.single else min(2, state.options.batch)
    write_graphs(folder, {"file": state.source})
    samples = state.samples.few(count, content.inputs)
    np.savez(folder / "samples.npz", **samples.arrays)  # type: ignore[arg-type]
    axes = axes_of(state.source)
    first = state.source.graph.inputs[0]
    stated = (first.shape or ir.Shape([]))[axes[str(first.name)] or 0]
    traced = stated if isinstance(stated, int) and stated > 0 else count
    (folder / "axes.json").write_text(json.dumps({"axes": axes, "batch": traced}), encoding="utf-8")
    return folder


class _Trials:
    """A child process that runs the bundle at sizes; a new one starts where the last one died."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self._arguments = [str(bundle), str(folder)]
        self._child: subprocess.Popen[str] | None = None

    def works(self, sizes: Sizes) -> bool:
        """Whether the bundle works at `sizes`."""
        if self._child is None:
            self._child = start_module("ttac.size_trials", self._arguments)
        assert self._child.stdin is not None and self._child.stdout is not None
        limit = threading.Timer(SECONDS, self._child.kill)
        limit.start()
        try:
            self._child.stdin.write(json.dumps(dict(sizes)) + "\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            limit.cancel()
        if not answer:
            self.close()
        return answer.strip() == "yes"

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()


class _Subject:
    """The bundle and the file in the child process."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        from ttac import runtime

        self.adapter: Adapter = runtime.load(bundle, threads=1, form="portable")
        self.infer, self.file = Executable(bundle / "infer.onnx"), Executable(folder / "file.onnx")
        with np.load(folder / "samples.npz", allow_pickle=False) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        facts: dict[str, Any] = json.loads((folder / "axes.json").read_text(encoding="utf-8"))
        self.axes, self.batch = facts["axes"], facts["batch"]
        manifest = parse_manifest(self.adapter.bundle.manifest)
        self.symbols = {spec.name: spec.shape for spec in manifest.inputs}
        self.outputs = {
            spec.name: spec.batch_axis
            for spec in manifest.outputs
            if spec.batch_axis is not None and np.dtype(spec.dtype).kind == "f"
        }

    def works(self, sizes: Sizes) -> bool:
        """Whether a step runs at `sizes`, and the model gives the numbers of the file, none of them NaN."""
        feeds = {name: self._cut(array, self.symbols[name], sizes) for name, array in self.arrays.items()}
        try:
            self.adapter.reset()
            self.adapter.step(feeds)
            expected = rows(self.file, SampleSet(feeds, self.axes), self.batch, self.outputs)
            found = self.infer(feeds, list(self.outputs))
        except Exception:
            return False
        return all(
            found[name].shape == array.shape
            and not np.isnan(array).any()
            and relative_outputs(found[name], array) <= AGREED
            for name, array in expected.items()
        )

    def _cut(self, array: np.ndarray, shape: tuple[int | str, ...], sizes: Sizes) -> np.ndarray:
        part = tuple(slice(sizes.get(str(size))) for size in shape)
        return np.ascontiguousarray(array[part])


def main(bundle: str, folder: str) -> int:
    """Answer each line of sizes."""
    subject = _Subject(Path(bundle), Path(folder))
    for line in sys.stdin:
        print("yes" if subject.works(json.loads(line)) else "no", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
