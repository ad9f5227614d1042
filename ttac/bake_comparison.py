"""A baked model beside the source on the same samples: errors where there are labels, information elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttac.check_samples import MOST_SAMPLES
from ttac.errors import VerificationError
from ttac.passes.step_graphs.check_set import SAMPLES, TURN, sample
from ttac.runtime.bundle import OpenBundle
from ttac.runtime.engine import open_session
from ttac.runtime.records import BATCH_AXIS, HeadSpec, Manifest
from ttac.samples.images import Stream, open_stream, preparation
from ttac.samples.named_arrays import named_stream, sample_shape, taken, with_sizes
from ttac.samples.predictions import Tally, fit_labels, probabilities

WORSE = 0.02
"""Most that the error of a baked model may exceed the source's, as a fraction of the labels."""
KEPT = "calibration samples of the bundle, with the statistics of the source"
"""The samples of a comparison that judges the trained tensors alone: statistics belong to the stream's data."""
LEAST_INFORMATION = 0.5
"""Least information of a baked model without labels, as a fraction of the source's."""


@dataclass(kw_only=True)
class Figures:
    """Figures of one model, added batch by batch.

    Attributes:
        total: sum of the probabilities over `count` samples.
    """

    tally: Tally
    total: Any = 0.0
    count: int = 0

    def add(self, outputs: np.ndarray, labels: np.ndarray | None, feeds: Any) -> None:
        """Count the predictions in the `outputs` of `feeds`."""
        self.tally.add(outputs, labels, feeds)
        self.total = self.total + probabilities(outputs, self.tally.head).sum(axis=0)
        self.count += len(outputs)

    @property
    def error(self) -> float | None:
        """Fraction of wrong predictions; None without labels."""
        return self.tally.error

    @property
    def information(self) -> float:
        """H(mean p) - mean H(p) in nats: near 0 for a model that says the same of all samples (Krause et al., 2010)."""
        p = self.total / self.count
        return max(0.0, float(-(p * np.log(p + 1e-12)).sum(axis=-1).mean() - self.tally.mean_entropy))


@dataclass(frozen=True)
class Comparison:
    """The figures of the source and of the baked model on the same samples; `kind` says which, where they are known."""

    source: Figures
    baked: Figures
    kind: str = "samples without labels"

    @property
    def text(self) -> str:
        """The two figures in one line."""
        source, baked, count = self.source, self.baked, self.source.count
        if source.error is None or baked.error is None:
            both = (
                f"the source has {source.information:.3f} nats of information, the baked model {baked.information:.3f}"
            )
            return f"on {count} {self.kind}, {both}"
        return f"on {count} samples, the source errs on {source.error:.1%}, the baked model on {baked.error:.1%}"

    def refuse(self) -> None:
        """Raise VerificationError if the baked model is much worse."""
        source, baked = self.source, self.baked
        if source.error is None or baked.error is None:
            worse = not baked.information >= LEAST_INFORMATION * source.information
        else:
            worse = not baked.error <= source.error + WORSE
        if worse:
            hint = "bake a state saved earlier, or write the model anyway with `--force`"
            raise VerificationError(f"the baked model is much worse: {self.text}", hint=hint)


@dataclass(frozen=True, kw_only=True)
class Referee:
    """Samples for comparing models, read as the bundle says."""

    stream: Stream
    head: HeadSpec
    manifest: Manifest
    kind: str = Comparison.kind

    @classmethod
    def of_check_set(cls, opened: OpenBundle) -> Referee | None:
        """The calibration samples that the bundle keeps for its guard; None without these, or without a head."""
        manifest = opened.manifest
        if SAMPLES not in manifest.graphs or manifest.head is None:
            return None
        axes = {spec.name: spec.batch_axis for spec in manifest.inputs}
        session = open_session(opened.files.graph(manifest.graphs[SAMPLES].file))
        batches: list[dict[str, np.ndarray]] = []
        for turn in range(MOST_SAMPLES):
            values = session.run([sample(name) for name in axes], {TURN: np.array(turn, np.float32)})
            batch = dict(zip(axes, values, strict=True))
            if not _count(batch, axes):
                break
            batches.append(batch)
        arrays = {
            name: batches[0][name] if axis is None else np.concatenate([batch[name] for batch in batches], axis)
            for name, axis in axes.items()
        }

        def read(start: int, stop: int) -> Any:
            part = taken(arrays, axes, slice(start, stop))
            return part if len(part) > 1 else next(iter(part.values()))

        stream = Stream(count=_count(arrays, axes), read=read)
        return cls(stream=stream, head=manifest.head, manifest=manifest, kind=KEPT)

    @classmethod
    def of(cls, manifest: Manifest, samples: Path) -> Referee | None:
        """The samples of a file or folder; None if the bundle does not say how its output is read.

        Raises UsageError for samples that cannot be read or do not fit.
        """
        entry, *others = manifest.raw["inputs"]
        entry = with_sizes(entry, manifest.raw, sample_shape(samples)) if manifest.sizes else entry
        if others or entry["shape"][0] != BATCH_AXIS:
            stream = named_stream(samples, manifest.raw["inputs"])
        else:
            stream = open_stream(samples, preparation(entry["shape"], manifest.raw["preprocessing"], entry["dtype"]))
        return None if manifest.head is None else cls(stream=stream, head=manifest.head, manifest=manifest)

    def compare(self, source: Path, baked: Path) -> Comparison:
        """The figures of two models."""
        return Comparison(self._figures(source), self._figures(baked), self.kind)

    def _figures(self, model: Path) -> Figures:
        figures, start = Figures(tally=Tally(head=self.head)), 0
        session, name = open_session(model), self.head.output or self.manifest.outputs[0].name
        for x in self.stream.batches(self.manifest.planned):
            (outputs,) = session.run([name], x if isinstance(x, dict) else {self.manifest.inputs[0].name: x})
            if not np.isfinite(outputs).all():
                raise VerificationError("the outputs are not finite", where=f"`{model.name}`", hint="check the samples")
            labels = self.stream.labels
            here = None if labels is None else labels[start : start + len(outputs)]
            figures.add(outputs, None if here is None else fit_labels(here, outputs.shape, self.head), x)
            start += len(outputs)
        return figures


def _count(arrays: Mapping[str, np.ndarray], axes: Mapping[str, int | None]) -> int:
    """The number of samples in the arrays."""
    return int(next(arrays[name].shape[axis] for name, axis in axes.items() if axis is not None))
