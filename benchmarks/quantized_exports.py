"""Small 8-bit nets from other quantizers: `python -m benchmarks.quantized_exports DIR pytorch|tflite`.

`pytorch` needs torch (2.13 was used).  It writes FX post-training quantization for both engines of PyTorch, and
quantization-aware training.  The older exporter writes the files; the newer exporter accepts neither.  `tflite` needs a
separate environment with `pip install tensorflow-cpu tf2onnx keras`.  It writes full-integer and weight-only
quantization by tf.lite.TFLiteConverter, converted by `python -m tf2onnx.convert --tflite`.  `tests/quantized` holds the
files `DIR/*.onnx`, gzipped.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

SHAPE, WIDTH, CLASSES = (3, 16, 16), 8, 10


def samples(count: int, seed: int) -> np.ndarray:
    """Return random samples, float32 [count, 3, 16, 16]."""
    return np.random.default_rng(seed).standard_normal((count, *SHAPE), dtype=np.float32)


def pytorch(folder: Path) -> None:
    """Write `fx-ENGINE-ACTIVATION.onnx` and `qat-ACTIVATION.onnx`."""
    import torch
    from torch import nn
    from torch.ao.quantization import (
        QConfigMapping,
        disable_observer,
        get_default_qat_qconfig,
        get_default_qconfig_mapping,
    )
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

    source = torch.from_numpy(samples(64, seed=2))
    for name, activation in (("relu", nn.ReLU), ("relu6", nn.ReLU6)):
        for engine in ("x86", "qnnpack"):
            torch.backends.quantized.engine = engine
            model = prepare_fx(_torch_net(activation, source), get_default_qconfig_mapping(engine), (source[:2],))
            with torch.no_grad():
                model(source)
            _torch_export(convert_fx(model), source, folder / f"fx-{engine}-{name}.onnx", 13)
        trained = QConfigMapping().set_global(get_default_qat_qconfig("x86", version=0))
        model = prepare_qat_fx(_torch_net(activation, source).train(), trained, (source[:2],))
        with torch.no_grad():
            model(source)
        model.eval().apply(disable_observer)
        _torch_export(model, source, folder / f"qat-{name}.onnx", 17)


def _torch_net(activation: Any, source: Any) -> Any:
    """Return a stem, an inverted residual block and a linear layer, with source statistics and different affines."""
    import torch
    from torch import nn

    class Residual(nn.Sequential):
        def forward(self, x: Any) -> Any:
            return super().forward(x) + x

    def layer(fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(fan_in, fan_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [convolution, nn.BatchNorm2d(fan_out)]

    torch.manual_seed(0)
    deep = 2 * WIDTH
    block = Residual(
        *layer(WIDTH, deep, 1), activation(), *layer(deep, deep, 3, groups=deep), activation(), *layer(deep, WIDTH, 1)
    )
    head = [*layer(WIDTH, deep, 3, 2), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(deep, CLASSES)]
    model = nn.Sequential(*layer(3, WIDTH, 3), activation(), nn.MaxPool2d(2), block, activation(), *head)
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
        nn.init.uniform_(norm.weight, 0.7, 1.3)
        nn.init.normal_(norm.bias, 0, 0.1)
        norm.momentum = None
    with torch.no_grad():
        model(source)
        model[-1].weight.mul_(6)
    return model.eval()


def _torch_export(model: Any, source: Any, path: Path, opset: int) -> None:
    import torch

    torch.onnx.export(
        model, (source[:2],), str(path), dynamo=False, opset_version=opset, input_names=["x"],
        output_names=["logits"], dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
    )  # fmt: skip


def tflite(folder: Path) -> None:
    """Write `tflite-ACTIVATION.onnx`, all in int8, and `tflite-weights.onnx` with int8 weights only."""
    import keras
    import tensorflow as tf

    from benchmarks.model_matrix_keras_weights import settled

    source = np.moveaxis(samples(64, seed=2), 1, -1)
    for name in ("relu", "relu6", "weights"):
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        converter = tf.lite.TFLiteConverter.from_keras_model(settled(_keras_net("relu" if name == "weights" else name)))
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if name != "weights":
            converter.representative_dataset = lambda: ([row[None]] for row in source)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        flat = folder / f"tflite-{name}.tflite"
        flat.write_bytes(converter.convert())
        path = flat.with_suffix(".onnx")
        command = [sys.executable, "-m", "tf2onnx.convert", "--tflite", flat, "--output", path, "--opset", "17"]
        subprocess.run(command, check=True, capture_output=True)


def _keras_net(activation: str) -> Any:
    import keras
    from keras import layers

    from benchmarks.model_matrix_keras_zoo import conv_norm

    inputs = keras.Input((*SHAPE[1:], SHAPE[0]))
    x = first = conv_norm(inputs, WIDTH, activation=activation)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.Activation(activation)(layers.BatchNormalization()(x))
    x = layers.MaxPooling2D()(layers.Add()([conv_norm(x, WIDTH, 1, activation=None), first]))
    x = layers.Concatenate()([conv_norm(x, WIDTH, activation=activation), x])
    x = conv_norm(x, 2 * WIDTH, strides=2, activation="hard_silu" if activation == "relu6" else activation)
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def main() -> None:
    warnings.filterwarnings("ignore")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    {"pytorch": pytorch, "tflite": tflite}[sys.argv[2]](folder)


if __name__ == "__main__":
    main()
