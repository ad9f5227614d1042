"""Random weights for Keras networks that resemble trained weights, and the source samples of their statistics."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

SPREAD = 1.5
"""Standard deviation of the logits: predictions are neither certain nor uniform."""
CALIBRATION = 64
"""Number of source samples, from which the statistics of the batch norms come."""


def settled(model: keras.Model) -> keras.Model:
    """Return the model with weights like trained ones: different affines, statistics that fit, a known logit spread.

    The names of norms get a letter at the end, because exporters number the further uses of a name.
    """
    random = np.random.default_rng(0)
    norms = [layer for layer in flat(model) if is_norm(layer)]
    for norm in norms:
        norm.name = f"{norm.name}n"
    for weight in model.trainable_variables:
        values = np.asarray(weight)
        if values.size > 1 and np.ptp(values) > 0:
            continue
        if values.size == 1 or values.flat[0] != 0:
            centre = float(values.flat[0]) if abs(float(values.flat[0])) > 0.5 else 0.3
            weight.assign(centre * random.uniform(0.7, 1.3, values.shape))
        else:
            weight.assign(0.1 * random.standard_normal(values.shape))
    x = source(model)
    averaged = [norm for norm in norms if isinstance(norm, layers.BatchNormalization)]
    for norm in averaged:
        norm.momentum = 0.0
    if averaged:
        model(x, training=True)
    for norm in averaged:
        norm.momentum = 0.99
    last = [layer for layer in flat(model) if layer.trainable_variables][-1]
    stretch = SPREAD / float(np.std(np.asarray(model(x, training=False))))
    for weight in last.trainable_variables:
        weight.assign(np.asarray(weight) * stretch)
    return model


def source(model: keras.Model) -> np.ndarray:
    """Return source samples, float32 [n, ...]."""
    shape = (CALIBRATION, *model.input_shape[1:])
    return np.random.default_rng(2).standard_normal(shape, dtype=np.float32)


def is_norm(layer: Any) -> bool:
    """Whether the layer normalises by statistics of the sample or batch, and has a trained affine or averages."""
    return type(layer).__name__.endswith("Normalization") and type(layer) is not layers.Normalization


def flat(model: keras.Model) -> list[Any]:
    """Return all layers, also those of nested models."""
    return list(model._flatten_layers(include_self=False, recursive=True))
