"""The adapted model beside the source model on every k-th batch: agreement, and an estimate whether adapting helps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ttac.errors import UnsupportedError, UsageError
from ttac.runtime.bundle import open_bundle
from ttac.runtime.engine import open_session
from ttac.runtime.records import SOURCE
from ttac.runtime.replacement import read_unreplaced

FEW = 1e-12
"""Added to a probability in its logarithm: 0 ln 0 is 0."""


class SourceMonitor:
    """Compares the adapted outputs of every k-th batch with those of the source model, which it loads from the bundle.

    A comparison costs one inference.  With `every=20`, that is at most 2 % of a step where an inference takes 40 % of a
    step or less.

    Args:
        bundle: the bundle's folder; its model must have one input and predict classes.
        every: number of steps from one comparison to the next.
        most: rate of disagreement above which the monitor alarms, as a fraction of the predictions.
        false_alarms: probability that the monitor ever alarms although the rate is at most `most`.
        threads: threads inside an operator; 0 is the engine's choice.

    Raises the errors of `ttac.load`, UnsupportedError for another model, and UsageError for numbers out of range.
    """

    def __init__(
        self,
        bundle: str | Path,
        every: int = 20,
        *,
        most: float = 0.5,
        false_alarms: float = 0.01,
        threads: int = 1,
    ) -> None:
        if not isinstance(every, int) or every < 1 or not 0 < most < 1 or not 0 < false_alarms < 1:
            hint = "give a number of steps, and two fractions between 0 and 1"
            raise UsageError("the numbers of the monitor are out of range", where="`SourceMonitor`", hint=hint)
        folder = Path(bundle)

        def read() -> Any:
            opened = open_bundle(folder)
            return opened.manifest, open_session(opened.files.graph(SOURCE), threads)

        self._manifest, self._session = read_unreplaced(folder, read)
        head = self._manifest.head
        if head is None or head.axis is None or head.kind not in ("classes", "dense") or len(self._manifest.inputs) > 1:
            hint = "compare labelled samples with `ttac eval`"
            raise UnsupportedError("the monitor needs a model that predicts classes", where=f"`{folder}`", hint=hint)
        self._head, self._every = head, every
        self._most, self._false_alarms = most, false_alarms
        self._steps = self._compared = 0
        self._disagreement = self._gain = 0.0
        self._alarm = False

    def look(self, x: np.ndarray | Mapping[str, np.ndarray], outputs: Any) -> bool:
        """Count a step with its input and its outputs, and compare if it is due; returns whether it was compared.

        Outputs with NaN or infinite values are not compared.
        """
        self._steps += 1
        if (self._steps - 1) % self._every:
            return False
        array = next(iter(x.values())) if isinstance(x, Mapping) else x
        (expected,) = self._session.run([self._head.output], {self._manifest.inputs[0].name: array})
        found = outputs[self._head.output] if isinstance(outputs, Mapping) else outputs
        if not np.isfinite(found).all() or not np.isfinite(expected).all():
            return False
        axis = self._head.axis
        self._compared += 1
        self._disagreement += float(np.mean(found.argmax(axis) != expected.argmax(axis)))
        self._gain += self._information(found) - self._information(expected)
        self._alarm = self._alarm or self.least_disagreement > self._most
        return True

    @property
    def least_disagreement(self) -> float:
        """A lower bound of the rate of disagreement, which holds at all times at once.

        It is the mean minus sqrt(ln(t (t + 1) / a) / 2t) after t comparisons: Hoeffding's inequality with the share
        a / (t (t + 1)) of the false alarms a.
        """
        t = self._compared
        radius = math.sqrt(math.log(t * (t + 1) / self._false_alarms) / (2 * t)) if t else 1.0
        return max(0.0, self._disagreement / max(1, t) - radius)

    @property
    def stats(self) -> dict[str, Any]:
        """Figures of all comparisons so far.

        compared: batches; source_agreement: fraction of predictions that are the source's class;
        information_gain: mean information of the adapted predictions minus the source's, in nats; below 0 speaks for
        harm; source_alarm: whether the rate of disagreement was ever provably above `most`.
        """
        count = max(1, self._compared)
        return {
            "compared": self._compared,
            "source_agreement": 1 - self._disagreement / count,
            "information_gain": self._gain / count,
            "source_alarm": self._alarm,
        }

    def _information(self, outputs: np.ndarray) -> float:
        """H(mean p) - mean H(p) over the positions of the outputs, in nats."""
        values = np.moveaxis(outputs, self._head.axis or 0, -1).astype(np.float64)
        values = values.reshape(-1, values.shape[-1])
        if self._head.values == "probabilities":
            p = values
        else:
            powers = np.exp(values - values.max(1, keepdims=True))
            p = powers / powers.sum(1, keepdims=True)
        mean = p.mean(0)
        return float((p * np.log(p + FEW)).sum(1).mean() - (mean * np.log(mean + FEW)).sum())
