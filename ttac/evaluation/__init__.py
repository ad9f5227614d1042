"""Evaluation: error, calibration, entropy, drift, time and memory of methods over streams of shifted samples.

| file                       | holds                                                                           |
|----------------------------|---------------------------------------------------------------------------------|
| `study`                    | `ttac.evaluate`: compiles the bundles, runs the cells, collects the results      |
| `evaluation_options`       | the options of `ttac.evaluate`, checked                                         |
| `recommendation`           | `ttac.recommend`: tries the methods on shifts of calibration samples            |
| `sensor_shifts`            | shifts of samples that are no images                                            |
| `watch`                    | the receiver of the progress                                                    |
| `dataset`, `idx`           | the samples: folders of images, arrays, iterators, IDX files                    |
| `corruptions`              | the 15 corruptions of ImageNet-C                                                |
| `protocols`                | the order of shifts and samples, and the resets                                 |
| `subjects`                 | models and methods, and the bundles to compile                                  |
| `cells`                    | one method on one model over one stream: description, run, result               |
| `named_data`               | the samples of models with several inputs: arrays by their names                |
| `answers`, `texts`, `boxes` | answers by the head of a bundle, and their errors against labels               |
| `metrics`                  | predictions, calibration bins, drift                                            |
| `shift_files`              | the arrays that cells stream, as files                                          |
| `result_folder`            | the folder that keeps bundles, arrays and results                               |
| `sweep`                    | pieces of work in this process, in several, or on a Ray cluster                 |
| `tables`                   | results as rows for programs and tables for people                              |
| `evaluation_result`        | `Evaluation`: all results of one call                                           |
| `html_report`, `plots`     | the HTML page (`*.jinja` are its templates), and its plots                      |
| `bench`, `timing`          | `ttac bench`: time and memory of a step, measured in pairs with inference       |
| `bench_figures`            | the records of a benchmark                                                      |
| `bench_report`             | a benchmark as rows, Markdown and HTML                                          |
| `source_inference`         | inference of the source model, and its memory                                   |

Names are imported at their first use, and the packages of the extra `eval` only where a report or a corruption needs
them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttac.evaluation.evaluation_result import Evaluation
    from ttac.evaluation.study import evaluate
    from ttac.evaluation.watch import Watch

__all__ = ["Evaluation", "Watch", "evaluate"]

_PLACES = {
    "Evaluation": "ttac.evaluation.evaluation_result",
    "Watch": "ttac.evaluation.watch",
    "evaluate": "ttac.evaluation.study",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(_PLACES[name]), name)
