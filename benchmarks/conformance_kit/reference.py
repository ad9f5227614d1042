"""A plain reader of bundles for the expected numbers of the kit: `docs/bundle.md` on ONNX's reference evaluator.

It shares no code with `ttac.runtime`, and no kernel with onnxruntime.  It does every run at its place, keeps every
value, and copies the whole state at a commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_grid_sample, op_one_hot
from safetensors.numpy import load_file

Arrays = dict[str, np.ndarray]
REJECTED_IN_A_ROW = 10
COUNTERS = ("steps", "samples", "rejected", "resets", "not_finite")


class GridSample(op_grid_sample.GridSample):
    """The evaluator's operator, which knows only the mode's name since opset 20, under the names before it too."""

    def _run(self, x: np.ndarray, grid: np.ndarray, *, mode: str, **more: Any) -> tuple[np.ndarray]:
        newer = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
        result: tuple[np.ndarray] = super()._run(x, grid, mode=newer, **more)
        return result


class GatherElements(OpRun):
    """The operator for an axis of any length; the evaluator's takes less than 64."""

    def _run(self, x: np.ndarray, indices: np.ndarray, *, axis: int) -> tuple[np.ndarray]:
        return (np.take_along_axis(x, indices, axis),)


class LogSoftmax(OpRun):
    """x - max - ln sum exp (x - max), which is finite where the evaluator's operator takes the logarithm of 0."""

    def _run(self, x: np.ndarray, *, axis: int) -> tuple[np.ndarray]:
        lower = x - x.max(axis, keepdims=True)
        return (lower - np.log(np.exp(lower).sum(axis, keepdims=True)),)


class OneHot(op_one_hot.OneHot):
    """The evaluator's operator, also for a depth with one axis."""

    def _run(self, indices: np.ndarray, depth: np.ndarray, values: np.ndarray, *, axis: int) -> tuple[np.ndarray]:
        result: tuple[np.ndarray] = super()._run(indices, depth.reshape(()), values, axis=axis)
        return result


OPERATORS: list[type[OpRun]] = [GatherElements, GridSample, LogSoftmax, OneHot]


class Reference:
    """A bundle in `folder`: `step` and `predict` give outputs by name; `state` and `stats` are attributes."""

    def __init__(self, folder: Path) -> None:
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self._graphs = {
            name: ReferenceEvaluator(onnx.load(str(folder / entry["file"])), new_ops=OPERATORS)
            for name, entry in self.manifest["graphs"].items()
        }
        weights = folder / "weights.safetensors"
        self._weights: Arrays = load_file(weights) if weights.exists() else {}
        self._initial: Arrays = load_file(folder / self.manifest["state"]["file"])
        self.reset()

    def reset(self) -> None:
        """Set the state to its compiled values, and all counters to zero."""
        self.state = dict(self._initial)
        self.stats: dict[str, float] = dict.fromkeys(COUNTERS, 0)
        self._count()
        self._rejected_in_a_row = 0

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Set the state; the counters go on."""
        self.state = dict(state)
        self._count()
        self._rejected_in_a_row = 0

    def _count(self) -> None:
        """Report what the state has before its graphs run; a negative value is unknown."""
        for entry in self.manifest["graphs"].values():
            for output, name in entry["stats"].items():
                first = self.state[entry["state"][output]].reshape(-1)[0] if output in entry["state"] else -1
                if first >= 0:
                    self.stats[name] = float(first)

    def predict(self, inputs: Arrays) -> Arrays:
        """The outputs; state and counters stay."""
        return self._spread("predict", inputs)[0]

    def step(self, inputs: Arrays) -> Arrays:
        """The outputs; the state and the counters change."""
        finite = self._finite(inputs)
        samples, dropped = len(finite), int((~finite).sum())
        learns = samples - dropped >= self.manifest["batch"]["smallest"]
        outputs, run = self._spread("step" if learns else "predict", inputs)
        pending: Arrays = run.pending if run is not None and learns else {}
        kept = all(np.isfinite(array).all() for array in pending.values() if array.dtype.kind == "f")
        if kept:
            self.state.update(pending)
        self._rejected_in_a_row = 0 if kept else self._rejected_in_a_row + 1
        if stuck := self._rejected_in_a_row == REJECTED_IN_A_ROW:
            self.state, self._rejected_in_a_row = dict(self._initial), 0
        counts = dict(zip(COUNTERS, (1, samples, int(not kept), int(stuck), dropped), strict=True))
        self.stats = {**self.stats, **{name: self.stats[name] + count for name, count in counts.items()}}
        self.stats |= run.reported if run is not None else {}
        if stuck:
            self._count()
        return outputs

    def axis(self, name: str) -> int | None:
        """The axis of the samples of an input; None for an input that all samples share."""
        for spec in self.manifest["inputs"]:
            if spec["name"] == name and "N" in spec["shape"]:
                return int(spec["shape"].index("N"))
        return None

    def _rows(self, inputs: Arrays, rows: list[int]) -> Arrays:
        """The given samples of every input."""
        axes = {name: self.axis(name) for name in inputs}
        return {
            name: array if (axis := axes[name]) is None else np.take(array, rows, axis)
            for name, array in inputs.items()
        }

    def _finite(self, inputs: Arrays) -> np.ndarray:
        """Whether each sample has only finite values."""
        axes = {name: self.axis(name) for name in inputs}
        samples = next(inputs[name].shape[axis] for name, axis in axes.items() if axis is not None)
        parts = [self._rows(inputs, [row]) for row in range(samples)]
        return np.array([all(np.isfinite(array).all() for array in part.values()) for part in parts])

    def _spread(self, program: str, inputs: Arrays) -> tuple[Arrays, _Run | None]:
        """Run on the finite samples; the rows of the others are NaN, or 0 in integers."""
        finite = self._finite(inputs)
        rows = list(np.flatnonzero(finite))
        if not rows:
            return {spec["name"]: self._blank(spec, len(finite)) for spec in self.manifest["outputs"]}, None
        filled = rows + [rows[-1]] * (self.manifest["batch"]["smallest"] - len(rows))
        run = _Run(self, self._rows(inputs, filled))
        returned = run.perform(self.manifest["programs"][program])
        assert returned is not None
        outputs: Arrays = {}
        for spec, array in zip(self.manifest["outputs"], returned, strict=True):
            outputs[spec["name"]] = array
            if "N" in spec["shape"] and not finite.all():
                axis = spec["shape"].index("N")
                sizes = [len(finite) if at == axis else size for at, size in enumerate(array.shape)]
                whole = self._blank({**spec, "shape": sizes}, len(finite))
                for target, row in enumerate(rows):
                    place = (slice(None),) * axis
                    whole[(*place, row)] = array[(*place, target)]
                outputs[spec["name"]] = whole
        return outputs, run

    @staticmethod
    def _blank(spec: Mapping[str, Any], samples: int) -> np.ndarray:
        sizes = [samples if size == "N" else size if isinstance(size, int) else 1 for size in spec["shape"]]
        dtype = np.dtype(spec["dtype"])
        return np.full(sizes, np.nan if dtype.kind == "f" else 0, dtype)


class _Run:
    """One pass through a program."""

    def __init__(self, reader: Reference, inputs: Arrays) -> None:
        self._reader = reader
        self.values, self.pending = dict(inputs), Arrays()
        self.reported: dict[str, float] = {}

    def perform(self, words: Sequence[Mapping[str, Any]]) -> list[np.ndarray] | None:
        for word in words:
            returned = None
            if "run" in word:
                self._run(word)
            elif "when" in word:
                yes = self._find(word["when"]).reshape(-1)[0] > 0
                returned = self.perform(word["then"] if yes else word.get("otherwise", []))
            elif "repeat" in word:
                for _ in range(word["repeat"]):
                    self.perform(word["do"])
            elif "reset" in word:
                names = self._reader.state if word["reset"] == "all" else word["reset"]
                self.pending.update({name: self._reader._initial[name] for name in names})
            else:
                returned = [self._find(name) for name in word["return"]]
            if returned is not None:
                return returned
        return None

    def _find(self, name: str) -> np.ndarray:
        for place in (self.values, self.pending, self._reader.state, self._reader._weights):
            if name in place:
                return place[name]
        raise KeyError(name)

    def _run(self, word: Mapping[str, Any]) -> None:
        graph, entry = self._reader._graphs[word["run"]], self._reader.manifest["graphs"][word["run"]]
        feed = {}
        for name in graph.input_names:
            feed[name] = self._find(word.get("feed", {}).get(name, name))
            axis = self._reader.axis(name) if "rows" in word else None
            if axis is not None:
                feed[name] = np.split(feed[name], [word["rows"]], axis)[0]
        names = word.get("only", graph.output_names)
        outputs = {name: np.asarray(array) for name, array in zip(names, graph.run(list(names), feed), strict=True)}
        self.values.update(outputs)
        for name, array in outputs.items():
            if name in entry["state"]:
                self.pending[entry["state"][name]] = array
            if name in entry["stats"]:
                self.reported[entry["stats"][name]] = float(array.reshape(-1)[0])
