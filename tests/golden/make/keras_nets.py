"""Write `tests/golden/keras-*`: two small Keras nets from tf2onnx, and a step of TENT by tf.GradientTape.

`python -m tests.golden.make.keras_nets` runs in an environment with `pip install tensorflow-cpu tf2onnx keras
safetensors` (2.21.0, 1.17.0 and 3.15.1 were used).  `batch` has batch norms after and before layers, with the statistics
of `calibration`; `own` has a layer, a group and an RMS norm.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers
from safetensors.numpy import save_file

from benchmarks.model_matrix_keras_weights import flat, is_norm, settled, source
from benchmarks.model_matrix_keras_zoo import head, image

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
RATE = 0.05
SIDE, WIDTH = 8, 6


def batch() -> keras.Model:
    x = inputs = image(SIDE)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(WIDTH, 3, padding="same")(x)))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    side = layers.Conv2D(WIDTH, 1)(layers.ReLU(6.0)(layers.BatchNormalization(scale=False)(x)))
    return keras.Model(inputs, head(layers.Add()([x, side])))


def own() -> keras.Model:
    x = inputs = image(SIDE)
    x = layers.LayerNormalization()(layers.Conv2D(WIDTH, 3, 2, padding="same")(x))
    x = layers.ReLU()(layers.GroupNormalization(2)(layers.Conv2D(WIDTH, 3, padding="same")(x)))
    x = layers.RMSNormalization()(layers.Reshape((16, WIDTH))(x))
    return keras.Model(
        inputs, head(layers.GlobalAveragePooling1D()(layers.Dense(WIDTH, activation="tanh")(x)), pooled=False)
    )


def stepped(model: keras.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return logits of the source and of the step, and the norms' parameters after the step, as `<layer>/gamma`."""
    found = {"logits": model(x, training=False).numpy()}
    held = {f"{n.name}/{v.name}": v for n in flat(model) if is_norm(n) for v in n.trainable_variables}
    with tf.GradientTape() as tape:
        logits = model(x, training=True)
        log_p = tf.nn.log_softmax(logits)
        entropy = -tf.reduce_mean(tf.reduce_sum(tf.exp(log_p) * log_p, -1))
    gradients = tape.gradient(entropy, [value.value for value in held.values()])
    found["step"] = logits.numpy()
    for (key, value), gradient in zip(held.items(), gradients, strict=True):
        found[f"after/{key}"] = np.asarray(value) - RATE * gradient.numpy()
    return found


def main() -> None:
    for make in (batch, own):
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        model: Any = settled(make())
        x = np.random.default_rng(1).standard_normal((8, *model.input_shape[1:]), dtype=np.float32)
        path = GOLDEN / f"keras-{make.__name__}.onnx"
        spec = (tf.TensorSpec((None, *x.shape[1:]), tf.float32, name="x"),)
        tf2onnx.convert.from_keras(model, input_signature=spec, opset=15, output_path=str(path))
        arrays = {"x": x, **({"calibration": source(model)} if make is batch else {}), **stepped(model, x)}
        save_file(arrays, path.with_suffix(".safetensors"))


if __name__ == "__main__":
    sys.exit(main())
