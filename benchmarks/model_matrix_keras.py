"""Export the Keras zoo with tf2onnx and Keras, and TensorFlow's answers.

`python -m benchmarks.model_matrix_keras DIR [NAMES]` runs in a separate environment: `pip install tensorflow-cpu
tf2onnx keras` (2.21.0, 1.17.0 and 3.15.1 were used; they conflict with onnxruntime-training).  Each network goes to
`DIR/keras.NAME/EXPORTER.onnx`, as in `benchmarks.model_matrix_export`.  The gradients in `peers.npz` are those of
tf.GradientTape in float32.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.model_matrix_folders import DONE, export_each

NEEDED = {"tensorflow": "tensorflow-cpu", "tf2onnx": "tf2onnx", "keras": "keras"}
BATCH = 4
PREFIX = "keras."
Write = Callable[[Any, np.ndarray, Path], None]
EXPORTERS: dict[str, Write] = {}


def exporter(name: str) -> Callable[[Write], Write]:
    def register(function: Write) -> Write:
        EXPORTERS[name] = function
        return function

    return register


def tf2onnx_file(model: Any, x: np.ndarray, path: Path, opset: int, *, batch: int | None, first: bool = False) -> None:
    """Export with `tf2onnx.convert.from_keras`; `first` makes an input with channels first."""
    import tensorflow as tf
    import tf2onnx

    spec = (tf.TensorSpec((batch, *x.shape[1:]), tf.float32, name="x"),)
    chosen = {"inputs_as_nchw": ["x"]} if first else {}
    tf2onnx.convert.from_keras(model, input_signature=spec, opset=opset, output_path=str(path), **chosen)


for _opset in range(13, 19):

    @exporter(f"tf2onnx-{_opset}")
    def _write(model: Any, x: np.ndarray, path: Path, opset: int = _opset) -> None:
        fixed = {13: 1, 14: 2}.get(opset)
        tf2onnx_file(model, x, path, opset, batch=fixed, first=opset == 15 and x.ndim == 4)


@exporter("keras")
def _keras(model: Any, x: np.ndarray, path: Path) -> None:
    model.export(str(path), format="onnx", verbose=False)


def export(name: str, folder: Path) -> dict[str, str]:
    """Write the network with every exporter, and return the refusals."""
    from benchmarks.model_matrix_keras_weights import source
    from benchmarks.model_matrix_keras_zoo import build

    model = build(name)  # `peers` gets another model, because a step moves its statistics
    x = np.random.default_rng(1).standard_normal((BATCH, *model.input_shape[1:]), dtype=np.float32)
    np.savez(folder / "peers.npz", x=x, calibration=source(model), **peers(build(name), x))
    refused = {}
    for kind, write in EXPORTERS.items():
        path = folder / f"{kind}.onnx"
        try:
            write(model, x, path)
            onnx.checker.check_model(str(path))  # tf2onnx writes unknown operators under their TensorFlow names
        except Exception as error:
            path.unlink(missing_ok=True)
            refused[kind] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            (folder / f"{kind}.error").write_text(refused[kind])
    return refused


def peers(model: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return Keras' logits, logits with batch statistics, the mean entropy's gradients, and the norms' parameters.

    The names are `<layer>/gamma` and `<layer>/beta`.
    """
    import tensorflow as tf

    from benchmarks.model_matrix_keras_weights import flat, is_norm

    answers = {"logits": model(x, training=False).numpy()}
    norms = [layer for layer in flat(model) if is_norm(layer)]
    trained = {f"{norm.name}/{value.name}": value for norm in norms for value in norm.trainable_variables}
    with tf.GradientTape() as tape:
        logits = model(x, training=True)
        rows = tf.reshape(logits, (-1, logits.shape[-1]))
        log_p = tf.math.log(rows) if model.layers[-1].name.startswith("softmax") else tf.nn.log_softmax(rows)
        entropy = -tf.reduce_mean(tf.reduce_sum(tf.exp(log_p) * log_p, -1))
    gradients = tape.gradient(entropy, [value.value for value in trained.values()])
    answers["adapted"] = logits.numpy()
    for (key, value), gradient in zip(trained.items(), gradients, strict=True):
        if gradient is not None:
            answers[f"gradient/{key}"] = gradient.numpy()
            answers[f"parameter/{key}"] = np.asarray(value)
    return answers


def main() -> None:
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(f"nothing exported: {', '.join(missing)} missing; in a separate environment, `pip install "
                         f"{' '.join(NEEDED.values())}`")  # fmt: skip
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from benchmarks.model_matrix_keras_zoo import ZOO

    root = Path(sys.argv[1])
    folders = {name: root / f"{PREFIX}{name}" for name in sys.argv[2:] or ZOO}
    export_each({name: folder for name, folder in folders.items() if not (folder / DONE).exists()}, export)


if __name__ == "__main__":
    main()
