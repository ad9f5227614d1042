"""The Keras architectures of the model matrix: models of `keras.applications` with a choice of width, and small nets.

Needs tensorflow and keras 3 (3.15.1 was used).  The weights are random without degenerate values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import applications, layers, ops
from keras.src.applications import convnext as convnexts
from keras.src.applications import densenet as densenets
from keras.src.applications import efficientnet as efficientnets
from keras.src.applications import efficientnet_v2 as efficientnets_v2
from keras.src.applications import nasnet as nasnets
from keras.src.applications import resnet as resnets

from benchmarks.model_matrix_keras_weights import settled

CLASSES = 10

ZOO: dict[str, Callable[[], keras.Model]] = {}
PLAIN: dict[str, Any] = {"weights": None, "classes": CLASSES, "classifier_activation": None}


def net(function: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
    """Register a network under the name of its function."""
    ZOO[function.__name__] = function
    return function


def build(name: str) -> keras.Model:
    """Return the network `name`; the weights are always the same."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    return settled(ZOO[name]())


def image(side: int = 32, channels: int = 3) -> Any:
    return keras.Input((side, side, channels))


def head(x: Any, *, pooled: bool = True) -> Any:
    return layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x) if pooled else x)


def conv_norm(x: Any, filters: int, kernel: int = 3, strides: int = 1, activation: str | None = "relu") -> Any:
    x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def narrower(blocks: list[dict[str, Any]], *widths: str) -> list[dict[str, Any]]:
    """Return the blocks with a quarter of their filters."""
    return [{**block, **{width: max(8, block[width] // 4) for width in widths}} for block in blocks]


@net
def mobilenet() -> keras.Model:
    return applications.MobileNet((64, 64, 3), alpha=0.25, dropout=0.0, **PLAIN)


@net
def mobilenet_v2() -> keras.Model:
    return applications.MobileNetV2((64, 64, 3), alpha=0.35, **PLAIN)


@net
def mobilenet_v3() -> keras.Model:
    return applications.MobileNetV3Small((64, 64, 3), alpha=0.35, dropout_rate=0.0, **PLAIN)


@net
def efficientnet() -> keras.Model:
    return efficientnets.EfficientNet(0.25, 0.5, 64, 0.0, 0.0, input_shape=(64, 64, 3), name="efficientnet", **PLAIN)


@net
def efficientnet_v2() -> keras.Model:
    blocks = narrower(efficientnets_v2.DEFAULT_BLOCKS_ARGS["efficientnetv2-b0"], "input_filters", "output_filters")
    return efficientnets_v2.EfficientNetV2(
        1.0, 0.5, 64, 0.0, 0.0, min_depth=8, blocks_args=blocks, input_shape=(64, 64, 3), name="efficientnetv2", **PLAIN
    )


def _resnet(stack: str, preact: bool) -> keras.Model:
    made = getattr(resnets, stack)

    def stacks(x: Any) -> Any:
        x = made(x, 8, 2, **({} if preact else {"stride1": 1}), name="conv2")
        return made(x, 16, 2, name="conv3")

    return resnets.ResNet(
        stacks, preact, True, include_top=True, input_shape=(64, 64, 3), name="resnet", **PLAIN
    )  # fmt: skip


@net
def resnet() -> keras.Model:
    return _resnet("stack_residual_blocks_v1", preact=False)


@net
def resnet_v2() -> keras.Model:
    return _resnet("stack_residual_blocks_v2", preact=True)


@net
def densenet() -> keras.Model:
    return densenets.DenseNet([2, 2, 2, 2], input_shape=(64, 64, 3), name="densenet", **PLAIN)


@net
def nasnet() -> keras.Model:
    return nasnets.NASNet(
        input_shape=(64, 64, 3), penultimate_filters=96, num_blocks=2, stem_block_filters=8, default_size=64,
        skip_reduction=False, filter_multiplier=2, **PLAIN,
    )  # fmt: skip


@net
def convnext() -> keras.Model:
    return convnexts.ConvNeXt(
        (1, 1, 2, 1), (16, 24, 32, 48), default_size=64, input_shape=(64, 64, 3), name="convnext", **PLAIN
    )


@net
def xception() -> keras.Model:
    x = inputs = image(64)
    x = conv_norm(x, 16, strides=2)
    for filters in (24, 32, 48):
        side = conv_norm(x, filters, 1, 2, activation=None)
        for position in range(2):
            x = layers.ReLU()(x) if position or filters > 24 else x
            x = layers.SeparableConv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization()(x)
        x = layers.Add()([layers.MaxPooling2D(3, 2, padding="same")(x), side])
    return keras.Model(inputs, head(x))


@net
def inception() -> keras.Model:
    x = inputs = image(64)
    x = layers.MaxPooling2D(3, 2)(conv_norm(x, 16, strides=2))
    for filters in (8, 12):
        pool = conv_norm(layers.AveragePooling2D(3, 1, padding="same")(x), filters, 1)
        tall = layers.Conv2D(filters, (7, 1), padding="same", use_bias=False)(conv_norm(x, filters, (1, 7)))
        tall = layers.ReLU()(layers.BatchNormalization(scale=False)(tall))
        x = layers.Concatenate()([conv_norm(x, filters, 1), conv_norm(conv_norm(x, filters, 1), filters), tall, pool])
    return keras.Model(inputs, head(x))


@net
def vgg_norm_before_relu_and_after() -> keras.Model:
    x = inputs = image()
    for filters in (8, 16, 24):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D()(conv_norm(x, filters))
    return keras.Model(inputs, head(layers.Flatten()(x), pooled=False))


@net
def vgg_plain() -> keras.Model:
    x = inputs = image()
    for filters in (8, 16, 24):
        x = layers.MaxPooling2D()(layers.Conv2D(filters, 3, padding="same", activation="relu")(x))
    return keras.Model(inputs, head(x))


@net
def squeeze_excite() -> keras.Model:
    x = inputs = image()
    for filters in (16, 24):
        x = conv_norm(x, filters, strides=2, activation="silu")
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = layers.Conv2D(4, 1, activation="relu")(gate)
        x = layers.Multiply()([x, layers.Conv2D(filters, 1, activation="hard_sigmoid")(gate)])
    return keras.Model(inputs, head(conv_norm(x, 32, 1)))


@net
def activations() -> keras.Model:
    x = inputs = image()
    for kind in ("leaky_relu", "elu", "selu", "softplus", "mish", "gelu", "relu6", "tanh", "hard_silu"):
        x = conv_norm(x, 12, strides=2 if kind in ("leaky_relu", "gelu") else 1, activation=kind)
    return keras.Model(inputs, head(layers.PReLU(shared_axes=[1, 2])(x)))


def gelu(x: Any) -> Any:
    """GELU by tanh: tf2onnx has no operator for the exact GELU of Keras."""
    return ops.gelu(x, approximate=True)


@net
def vit() -> keras.Model:
    x = inputs = image()
    x = layers.Conv2D(32, 8, 8)(x)
    x = layers.Reshape((16, 32))(x)
    x = x + layers.Embedding(16, 32)(ops.arange(16))
    for _ in range(2):
        inner = layers.LayerNormalization(epsilon=1e-6)(x)
        x = x + layers.MultiHeadAttention(4, 8)(inner, inner)
        inner = layers.LayerNormalization(epsilon=1e-6)(x)
        x = x + layers.Dense(32)(gelu(layers.Dense(64)(inner)))
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    return keras.Model(inputs, head(layers.GlobalAveragePooling1D()(x), pooled=False))


@net
def convnext_depthwise() -> keras.Model:
    x = inputs = image()
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(16, 4, 4)(x))
    for _ in range(2):
        inner = layers.LayerNormalization(epsilon=1e-6)(layers.DepthwiseConv2D(7, padding="same")(x))
        inner = layers.Dense(16)(gelu(layers.Dense(32)(inner)))
        x = x + layers.Rescaling(0.5)(inner)
    return keras.Model(
        inputs, head(layers.LayerNormalization(epsilon=1e-6)(layers.GlobalAveragePooling2D()(x)), pooled=False)
    )


@net
def mixer() -> keras.Model:
    x = inputs = image()
    x = layers.Reshape((16, 24))(layers.Conv2D(24, 8, 8)(x))
    for _ in range(2):
        inner = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        inner = layers.Dense(16)(layers.Dense(32, activation="gelu")(inner))
        x = x + layers.Permute((2, 1))(inner)
        x = x + layers.Dense(24)(layers.Dense(48, activation="gelu")(layers.LayerNormalization()(x)))
    return keras.Model(inputs, head(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x)), pooled=False))


@net
def group_norm() -> keras.Model:
    x = inputs = image()
    for filters, groups in ((16, 4), (24, -1), (32, 1)):
        side = layers.Conv2D(filters, 1, 2)(x)
        x = layers.ReLU()(layers.GroupNormalization(groups)(layers.Conv2D(filters, 3, 2, padding="same")(x)))
        x = side + layers.GroupNormalization(8)(layers.Conv2D(filters, 3, padding="same")(x))
    return keras.Model(inputs, head(x))


@net
def layer_norm_no_affine() -> keras.Model:
    x = inputs = image()
    for filters in (16, 24):
        x = layers.Conv2D(filters, 3, 2, padding="same")(x)
        x = layers.ReLU()(layers.LayerNormalization(center=False, scale=False)(x))
        x = layers.ReLU()(layers.LayerNormalization(axis=(1, 2, 3), scale=False)(layers.Conv2D(filters, 1)(x)))
    return keras.Model(inputs, head(x))


@net
def rms_norm() -> keras.Model:
    x = inputs = image()
    x = layers.Reshape((16, 24))(layers.Conv2D(24, 8, 8)(x))
    for _ in range(2):
        inner = layers.RMSNormalization()(x)
        x = x + layers.GroupQueryAttention(6, 4, 2)(inner, inner)
        inner = layers.RMSNormalization()(x)
        x = x + layers.Dense(24)(layers.Dense(48, activation="silu")(inner))
    return keras.Model(inputs, head(layers.GlobalAveragePooling1D()(layers.RMSNormalization()(x)), pooled=False))


@net
def series() -> keras.Model:
    x = inputs = keras.Input((64, 6))
    for filters in (16, 24, 32):
        x = layers.Conv1D(filters, 5, padding="same", use_bias=False)(x)
        x = layers.MaxPooling1D()(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.SeparableConv1D(32, 3, padding="same")(x)
    x = layers.GlobalAveragePooling1D()(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(inputs, head(x, pooled=False))


@net
def causal_series() -> keras.Model:
    x = inputs = keras.Input((64, 6))
    for dilation in (1, 2, 4):
        inner = layers.Conv1D(16, 3, padding="causal", dilation_rate=dilation)(x)
        inner = layers.ReLU()(layers.LayerNormalization()(inner))
        x = layers.Add()([inner, layers.Conv1D(16, 1)(x)])
    return keras.Model(inputs, head(layers.GlobalMaxPooling1D()(x), pooled=False))


@net
def recurrent() -> keras.Model:
    x = inputs = keras.Input((16, 6))
    x = layers.LayerNormalization()(layers.LSTM(16, return_sequences=True)(x))
    return keras.Model(inputs, head(layers.GRU(16)(x), pooled=False))


@net
def table() -> keras.Model:
    x = inputs = keras.Input((20,))
    for units in (32, 32):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(units)(x)))
    return keras.Model(inputs, head(x, pooled=False))


@net
def volume() -> keras.Model:
    x = inputs = keras.Input((12, 12, 12, 2))
    for filters in (8, 16):
        x = layers.Conv3D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.MaxPooling3D()(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(inputs, head(layers.GlobalAveragePooling3D()(x), pooled=False))


@net
def segmentation() -> keras.Model:
    x = inputs = image()
    first = conv_norm(x, 12)
    second = conv_norm(layers.MaxPooling2D()(first), 16)
    x = conv_norm(layers.MaxPooling2D()(second), 24)
    x = layers.UpSampling2D(interpolation="bilinear")(x)
    x = layers.Concatenate()([conv_norm(x, 16), second])
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2DTranspose(12, 3, 2, padding="same")(x)))
    x = conv_norm(layers.Concatenate()([x, first]), 12)
    return keras.Model(inputs, layers.Conv2D(CLASSES, 1)(x))


@net
def prepared() -> keras.Model:
    x = inputs = image()
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.1, 0.9, 1.3])(layers.Rescaling(0.9, 0.05)(x))
    x = layers.ZeroPadding2D(1)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(epsilon=1e-3)(layers.Conv2D(16, 3, 2)(x)))
    x = layers.DepthwiseConv2D(3, padding="same", dilation_rate=2, use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(center=False)(x))
    return keras.Model(inputs, layers.Softmax()(head(x)))
