"""LeanTTA as an oracle: onnx's reference evaluator in float64 with the paper's rule for BatchNormalization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Setting = float | str
At = Callable[[str], Mapping[str, Setting] | None]
DEFAULTS: dict[str, Setting] = {
    "tau": 0.9, "lambda": 0.5, "distance": "sum", "metric": "variance", "variance": "biased",
}  # fmt: skip


def blended(
    x: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float, settings: Mapping[str, Setting]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and variance [C] that normalise one sample [C, ...], computed step by step as in the paper."""
    tau, power = float(settings["tau"]), float(settings["lambda"])
    values = x.reshape(len(x), -1)
    sample_mean = values.mean(axis=1)
    sample_var = values.var(axis=1, ddof=int(settings["variance"] == "unbiased"))
    first_mean = tau * mean + (1 - tau) * sample_mean
    first_var = tau * var + (1 - tau) * sample_var
    sigma = (var + eps) ** (2 if settings["metric"] == "squared" else 1)
    terms = (first_mean - mean) ** 2 / sigma
    exponent = terms.sum() if settings["distance"] == "sum" else terms.mean()
    weight = (-np.expm1(-exponent)) ** power
    return weight * mean + (1 - weight) * first_mean, weight * var + (1 - weight) * first_var


def restated(path: Path, settings: Mapping[str, Setting], at: At | None = None) -> Any:
    """Return a function of x that computes float64 logits, with every batch norm over several positions adapted.

    Args:
        at: further settings of a norm, by the name of its scale without the last word; None leaves the norm unadapted.
    """
    model = onnx.load(path)
    names = {}
    constants = [a.t for node in model.graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    for tensor in [*model.graph.initializer, *constants]:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float64), tensor.name))
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            names[node.output[0]] = node.input[1].rpartition(".")[0]

    class BatchNormalization(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: float = 1e-5, **_: Any) -> Any:
            local = at(names[self.onnx_node.output[0]]) if at else {}
            y = np.empty_like(x)
            for index, sample in enumerate(x):
                m, v = mean, var
                if local is not None and np.prod(x.shape[2:]) > 1:
                    m, v = blended(sample, mean, var, epsilon, {**DEFAULTS, **settings, **local})
                shape = (-1,) + (1,) * (sample.ndim - 1)
                factor = (scale / np.sqrt(v + epsilon)).reshape(shape)
                y[index] = (sample - m.reshape(shape)) * factor + bias.reshape(shape)
            return (y,)

    evaluator = ReferenceEvaluator(model, new_ops=[BatchNormalization])
    return lambda x: evaluator.run(None, {model.graph.input[0].name: x.astype(np.float64)})[0]
