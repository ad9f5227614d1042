"""How well estimates without labels tell harm from help: `python -m benchmarks.harm_estimate`.

`tent` without the guard adapts to a stream of clean images and seven corruptions in turn.  A window of eight batches is
harm if the adapted model errs on more samples than the source, and help if it errs on fewer.  The AUC of an estimate is
the probability that a window of harm has a higher value than a window of help: 0.5 for chance, 1 for a perfect one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.drift import BATCH, data
from benchmarks.guard_study import NETS, compiled
from ttac.samples.predictions import entropies, probabilities

WINDOW = 8
ESTIMATES = (
    "disagreement with the source",
    "loss of information",
    "rise of entropy",
    "rise of the estimated error",
    "estimated error",
)
ESTIMATING = '{"estimate": 10}'
"""The setting of the source model, whose estimated error is the other half of the rise."""


def main() -> None:
    """Print the windows of harm and help, and the AUC of each estimate, by net and for all nets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--method", default="tent")
    parser.add_argument("--steps", type=int, default=640)
    asked = parser.parse_args()
    print(f"| net | harm | help | {' | '.join(ESTIMATES)} |\n|---|" + " ---: |" * (2 + len(ESTIMATES)))
    every = [windows(net, asked.method, asked.steps) for net in asked.nets]
    for net, rows in zip([*asked.nets, "all"], [*every, np.concatenate(every)], strict=True):
        harm, aid = rows[rows[:, 0] > 0, 1:], rows[rows[:, 0] < 0, 1:]
        aucs = [f"{auc(harm[:, i], aid[:, i]):.2f}" if len(harm) and len(aid) else "-" for i in range(len(ESTIMATES))]
        print(f"| {net} | {len(harm)} | {len(aid)} | {' | '.join(aucs)} |", flush=True)


def windows(net: str, method: str, steps: int) -> np.ndarray:
    """For each window: errors of the adapted model minus the source's, and the estimates."""
    images, labels = data()
    random, names = np.random.default_rng(0), list(images)
    adapter, source = compiled(net, method, '{"guard": "off", "estimate": 10}'), compiled(net, "source", ESTIMATING)
    rows = []
    for step in range(steps):
        chosen = random.choice(len(labels), BATCH, replace=False)
        x = images[names[step // WINDOW % len(names)]][chosen]
        figures = compared(adapter.step(x), source.step(x), labels[chosen])
        estimated, before = (float(each.stats["estimated_error"]) for each in (adapter, source))
        rows.append([*figures, estimated - before, estimated])
    return np.array(rows).reshape(-1, WINDOW, 1 + len(ESTIMATES)).mean(1)


def compared(adapted: np.ndarray, source: np.ndarray, labels: np.ndarray) -> list[float]:
    """Errors of the adapted predictions minus the source's, and the estimates from both predictions, of one batch."""
    wrong = float(np.mean(adapted.argmax(1) != labels) - np.mean(source.argmax(1) != labels))
    rise = float(entropies(adapted).mean() - entropies(source).mean())
    lost = information(source) - information(adapted)
    return [wrong, float(np.mean(adapted.argmax(1) != source.argmax(1))), lost, rise]


def information(logits: np.ndarray) -> float:
    """H(mean p) - mean H(p), in nats."""
    mean = probabilities(logits).mean(0)
    return float(-(mean * np.log(mean + 1e-12)).sum() - entropies(logits).mean())


def auc(high: Sequence[float] | np.ndarray, low: Sequence[float] | np.ndarray) -> float:
    """The probability that a value of `high` exceeds a value of `low`; equal values count half."""
    difference = np.subtract.outer(np.asarray(high), np.asarray(low))
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


if __name__ == "__main__":
    main()
