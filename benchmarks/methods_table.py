"""All methods on the shipped nets: `python -m benchmarks.methods_table --write docs/methods-table.md`.

Fifteen corruptions, protocols `continual` and `reset-each-shift`, batch 64 and batch 1; then a stream ten times as
long, and the time of a step.  The folder of `--keep` holds finished cells, so that an interrupted run goes on where it
stopped.  `--parts errors drift` leaves the times to an idle machine; `--parts times` alone prints time and memory of
the bundles that the folder holds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ttac
from benchmarks.methods_costs import PASSES, cost_table, evaluate_long, pass_errors, peaks, short_table, step_times
from ttac import methods
from ttac.evaluation.evaluation_result import Evaluation
from ttac.evaluation.machine import about
from ttac.evaluation.watch import Watch

DEMO = Path(ttac.__file__).resolve().parent / "demo"
NETS = {
    "fashion_resnet_bn_unfolded": "BatchNorm",
    "fashion_resnet_gn": "GroupNorm",
    "fashion_vit": "ViT",
}
SAMPLES = {64: 256, 1: 16}
"""Number of images of each corruption and severity, by batch."""

PROTOCOLS = ("continual", "reset-each-shift")
PARTS = ("errors", "drift", "times")

Rows = Sequence[Mapping[str, Any]]


def main() -> None:
    """Evaluate, print the page, and write it with `--write`."""
    asked = _parser().parse_args()
    start = time.monotonic()
    models, shared = [DEMO / f"{net}.onnx" for net in asked.nets], _choices(asked)
    bundles = (models, _methods(asked), {name: shared[name] for name in ("settings", "options")}, asked.keep.absolute())
    if "errors" not in asked.parts:
        print("\n".join(short_table(step_times(*bundles, asked.data), peaks(*bundles), NETS)))
        return
    parts = [evaluated(asked, batch, samples) for batch, samples in zip(SAMPLES, asked.samples, strict=True) if samples]
    whole = Evaluation(
        results=[result for part in parts for result in part.results],
        missing=[missing for part in parts for missing in part.missing],
        reports={key: report for part in parts for key, report in part.reports.items()},
        data=parts[0].data,
        about=parts[0].about,
    )
    long = evaluate_long(models, asked.data, asked.long, **shared).rows() if "drift" in asked.parts else []
    times = step_times(*bundles, asked.data) if "times" in asked.parts else {}
    text = page(whole, asked.samples) + "\n".join(["", *costs(whole.rows(), long, times, asked.long)]) + "\n"
    print(f"{(time.monotonic() - start) / 60:.0f} minutes in this run", file=sys.stderr)
    print(text)
    if asked.write:
        asked.write.write_text(text, encoding="utf-8")
    if asked.csv:
        asked.csv.write_text(whole.csv(), encoding="utf-8")
    if asked.html:
        whole.write_html(asked.html)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods_table", description=__doc__)
    parser.add_argument("--data", type=Path, default=DEMO / "fashion_stream.npz", help="by default the shipped images")
    parser.add_argument("--methods", default=",".join(all_methods()), help="with commas between them")
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--samples", type=int, nargs=2, default=tuple(SAMPLES.values()), help="at batch 64 and batch 1")
    parser.add_argument(
        "--long", type=int, default=64, help="images of each corruption in each pass of the long stream"
    )
    parser.add_argument("--severities", default="5", help="with commas between them")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("build/methods-table"), help="folder of finished cells")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every row here")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report with plots here")
    return parser


def all_methods() -> list[str]:
    """Return the names of all methods, `source` first."""
    return sorted(methods.names(), key=lambda name: (name != "source", name))


def _methods(asked: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(["source", *asked.methods.split(",")]))


def _choices(asked: argparse.Namespace) -> dict[str, Any]:
    chosen = _methods(asked)
    guarded = any(option.name == "guard" for name in chosen for option in methods.find(name).options)
    return {
        "methods": chosen,
        "settings": {"guard": "off"} if guarded else {},
        "options": {"calibration": DEMO / "fashion_calibration.npz"},
        "output": asked.keep,
        "jobs": asked.jobs,
        "threads": 1,
        "watch": Watch(say=lambda line: print(line, file=sys.stderr, flush=True)),
    }


def evaluated(asked: argparse.Namespace, batch: int, samples: int) -> Evaluation:
    """Evaluate all methods at one batch."""
    return ttac.evaluate(
        [DEMO / f"{net}.onnx" for net in asked.nets],
        asked.data,
        corruptions=["all"],
        severities=[int(severity) for severity in asked.severities.split(",")],
        protocols=PROTOCOLS,
        batch=batch,
        samples=samples,
        **_choices(asked),
    )


def page(evaluation: Evaluation, samples: Sequence[int]) -> str:
    """Return the page as Markdown."""
    facts, rows = about(1), evaluation.rows()
    used = [(batch, n) for batch, n in zip(SAMPLES, samples, strict=True) if n]
    counts = " and ".join(f"{n} at batch {batch}" for batch, n in used)
    errors = " and ".join(f"{50 / n**0.5:.1f} points at batch {batch}" for batch, n in used)
    severities = sorted({row["severity"] for row in rows})
    mean = f" / mean over severities {', '.join(map(str, severities))}" if len(severities) > 1 else ""
    lines = [
        "# All methods on the shipped nets",
        "",
        f"Made by `python -m benchmarks.methods_table` on {facts['date']}: {facts['machine']}; {facts['packages']}.",
        "Every method as published, without the guard; the 15 corruptions of",
        f"`{corruption_package(evaluation)}`, images of `{evaluation.data}`: {counts} per corruption and severity.",
        "",
        f"Error in %, severity 5{mean}, of the predictions made before each update. Bold is the",
        "lowest of a column, † is higher than `source`. The images are the same in every entry: two methods are",
        "compared on equal terms, but the error of one corruption is as uncertain as any figure from so few images (a",
        f"standard error of up to {errors}).",
        "",
    ]
    for protocol in PROTOCOLS:
        lines += [f"## {protocol}", "", *table([row for row in rows if row["protocol"] == protocol]), ""]
    lines += ["## Wins and losses", "", *wins(rows), ""]
    reasons = {(m.cell.subject.model, m.cell.subject.method): m.reason.problem for m in evaluation.missing}
    lines += [f"* `{method}` does not run on `{model}`: {reason}" for (model, method), reason in reasons.items()]
    return "\n".join(lines).rstrip() + "\n"


def costs(rows: Rows, long: Rows, times: Mapping[tuple[str, str], float], samples: int) -> list[str]:
    """Return the part of the page about time, memory, the worst corruption and long streams."""
    continual, passes = [row for row in rows if row["protocol"] == PROTOCOLS[0]], pass_errors(long)
    lines = [
        "## Time, memory, the worst corruption and long streams",
        "",
        "Batch 64, continual. Times are those of a step with one thread, in times of the step of `source`. The peak",
        "is the working memory of a step, measured in a fresh process. The highest error is that of one corruption,",
        f"with the source's error under it. The long stream has the 15 corruptions {PASSES} times, {samples} images of",
        "each, never reset: mean errors in % of its first and last pass.",
    ]
    for model in dict.fromkeys(row["model"] for row in continual):
        lines += ["", f"### {NETS[model]}", "", *cost_table(model, continual, passes, times)]
    return lines


def corruption_package(evaluation: Evaluation) -> str:
    """Return name and version of the package of the corruptions."""
    return str(evaluation.results[0]["cell"]["data"]["corruptions"])


def columns(rows: Rows) -> list[tuple[str, int]]:
    """Return model and batch of each column."""
    return list(dict.fromkeys((row["model"], row["batch"]) for row in rows))


def table(rows: Rows) -> list[str]:
    """Return a table with one row per method and one column per model and batch."""
    heads = columns(rows)
    named = list(dict.fromkeys(row["method"] for row in rows))
    severities = sorted({row["severity"] for row in rows})
    shown = [(max(severities),), severities][: len(severities)]
    errors = [{key: {m: mean_error(rows, *key, m, some) for m in named} for key in heads} for some in shown]
    lines = [
        "| method | " + " | ".join(f"{NETS[model]}, batch {batch}" for model, batch in heads) + " |",
        "|---|" + "---:|" * len(heads),
    ]
    for method in named:
        cells = [" / ".join(error_text(each[key], method) for each in errors) for key in heads]
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return lines


def error_text(errors: Mapping[str, float | None], method: str) -> str:
    """Return an error as text: bold if it is the lowest, with a dagger if it is above that of `source`."""
    value = errors[method]
    if value is None:
        return "-"
    text = f"{100 * value:.1f}"
    if value == min(each for each in errors.values() if each is not None):
        text = f"**{text}**"
    source = errors.get("source")
    return text + ("†" if source is not None and value > source else "")


def mean_error(rows: Rows, model: str, batch: int, method: str, severities: Sequence[int]) -> float | None:
    """Return the mean over corruptions and severities, in 0..1; None where the method did not run."""
    values = [row["error"] for row in chosen(rows, model, batch, method) if row["severity"] in severities]
    return float(np.mean(values)) if values else None


def chosen(rows: Rows, model: str, batch: int, method: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of one method on one model at one batch."""
    for row in rows:
        if (row["model"], row["batch"], row["method"]) == (model, batch, method):
            yield row


def wins(rows: Rows) -> list[str]:
    """Return for each method the number of streams on which it is better than `source`, and worse."""
    lines = ["| method | protocol | better than source | worse | the worst of them |", "|---|---|---:|---:|---|"]
    source = {stream_of(row): row["error"] for row in rows if row["method"] == "source"}
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "source"):
        for protocol in PROTOCOLS:
            matching = [row for row in rows if (row["method"], row["protocol"]) == (method, protocol)]
            differences = [(row["error"] - source[stream_of(row)], row) for row in matching]
            better, worse = (sum(sign * d > 0 for d, _ in differences) for sign in (-1, 1))
            worst, row = max(differences, key=lambda pair: pair[0])
            where = f"{row['shift']} {row['severity']}, {NETS[row['model']]}, batch {row['batch']}: +{100 * worst:.1f}"
            lines.append(f"| `{method}` | {protocol} | {better} | {worse} | {where if worst > 0 else '-'} |")
    return lines


def stream_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a key that is equal for two rows of the same stream."""
    return tuple(row[name] for name in ("model", "protocol", "order", "batch", "seed", "shift", "severity"))


if __name__ == "__main__":
    main()
