"""How good is the choice of `ttac recommend`? `python -m benchmarks.recommendation_study --keep DIR`.

The choice is made on unlabelled calibration images.  Every method then streams other images under the shipped
corruptions, which the choice has not seen; the labels tell the best method of each corruption in hindsight.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import ttac
from ttac import methods
from ttac.evaluation.recommendation import Recommendation
from ttac.evaluation.watch import Watch

DEMO = Path(ttac.__file__).resolve().parent / "demo"
NETS = {"fashion_resnet_bn": "BatchNorm", "fashion_resnet_gn": "GroupNorm", "fashion_vit": "ViT"}
CALIBRATION, STREAM = DEMO / "fashion_calibration.npz", DEMO / "fashion_stream.npz"
CLOSE = 0.01
"""A choice is close to the best method if its error is at most this much higher."""


def main() -> None:
    """Print one row for each net and batch: how many corruptions the choice is close to the best method on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recommendation_study", description=__doc__)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--batches", nargs="+", type=int, default=[16])
    parser.add_argument("--methods", nargs="+", default=list(methods.names()))
    parser.add_argument("--samples", type=int, default=512, help="images of each corruption")
    parser.add_argument("--severity", type=int, default=5, help="of the synthetic shifts")
    parser.add_argument("--keep", type=Path, help="folder of finished results")
    asked = parser.parse_args()
    print(
        "| net | batch | choice | corruptions within 1 point of the best | mean error | best single method | source |"
    )
    print("|---|---:|---|---:|---:|---|---:|")
    for net in asked.nets:
        for batch in asked.batches:
            print(row(net, batch, asked), flush=True)


def row(net: str, batch: int, asked: argparse.Namespace) -> str:
    """Return one row of the table."""
    model = DEMO / f"{net}.onnx"
    shared = {"methods": asked.methods, "batch": batch, "output": asked.keep}
    watch = Watch(say=lambda line: print(line, file=sys.stderr))
    found = ttac.recommend(model, CALIBRATION, severity=asked.severity, watch=watch, **shared)
    errors = errors_by_shift(model, found, watch, asked.samples, shared)
    means = {method: float(np.mean([by[method] for by in errors.values()])) for method in next(iter(errors.values()))}
    close = {method: sum(by[method] <= min(by.values()) + CLOSE for by in errors.values()) for method in means}
    steadiest, best = max(close, key=lambda method: close[method]), min(means, key=lambda method: means[method])
    return (
        f"| {NETS[net]} | {batch} | `{found.method}` | {close[found.method]} of {len(errors)} "
        f"| `{steadiest}`, {close[steadiest]} | {100 * means[found.method]:.1f} "
        f"| `{best}`, {100 * means[best]:.1f} | {100 * means['source']:.1f} |"
    )


def errors_by_shift(
    model: Path, found: Recommendation, watch: Watch, samples: int, shared: dict[str, object]
) -> dict[str, dict[str, float]]:
    """Return shift -> method -> error on the labelled stream, for the methods that ran in the recommendation."""
    ran = [each.method for each in found.candidates]
    evaluation = ttac.evaluate(
        model,
        STREAM,
        samples=samples,
        options={"calibration": CALIBRATION},
        watch=watch,
        **{**shared, "methods": ran},
    )
    (table,) = evaluation.tables()
    return {shift: dict(by) for shift, by in table.errors.items()}


if __name__ == "__main__":
    main()
