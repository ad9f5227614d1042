"""The models of the kit's compiled bundles, of some thousand drawn weights each; all take images [N, 3, 8, 8]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

SAMPLE = (3, 8, 8)
CLASSES, TURNS = 5, 4
CHANNELS = 8
"""Channels of the convolutional net, and the width of a token."""
PATCH, TOKENS, HEADS, BLOCKS = 4, 5, 2, 2


class Net:
    """The nodes and the weights of a model; the methods add nodes and return the name of the result."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.RandomState(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def node(self, op: str, name: str, *inputs: str, **attributes: object) -> str:
        """Add a node with one output, which has the node's name."""
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def weight(self, name: str, *shape: int, scale: float = 1.0) -> str:
        """Add a weight of normal numbers."""
        self.weights[name] = (scale * self.random.standard_normal(shape)).astype(np.float32)
        return name

    def between(self, name: str, low: float, high: float, size: int = CHANNELS) -> str:
        """Add a weight [size] of numbers between `low` and `high`."""
        self.weights[name] = self.random.uniform(low, high, size).astype(np.float32)
        return name

    def whole(self, name: str, *numbers: int) -> str:
        """Add a constant of whole numbers."""
        self.weights[name] = np.array(numbers, np.int64)
        return name

    def batch_norm(self, name: str, x: str) -> str:
        """Add a batch norm."""
        limits = {"scale": (0.8, 1.2), "bias": (-0.2, 0.2), "mean": (-0.1, 0.1), "var": (0.8, 1.5)}
        parts = [self.between(f"{name}.{part}", *limit) for part, limit in limits.items()]
        return self.node("BatchNormalization", name, x, *parts)

    def layer_norm(self, name: str, x: str) -> str:
        """Add a layer norm over the last axis."""
        parts = [self.between(f"{name}.scale", 0.8, 1.2), self.between(f"{name}.bias", -0.2, 0.2)]
        return self.node("LayerNormalization", name, x, *parts, axis=-1)

    def linear(self, name: str, x: str, wide: int, out: int) -> str:
        """Add a linear layer over the last axis, as MatMul and Add."""
        product = self.node("MatMul", f"{name}.product", x, self.weight(f"{name}.weight", wide, out, scale=wide**-0.5))
        return self.node("Add", name, product, self.weight(f"{name}.bias", out, scale=0.1))

    def classifier(self, name: str, features: str, output: str, classes: int) -> None:
        """Add a linear layer from features [N, 8] to the scores `output` [N, classes]."""
        weight = self.weight(f"{name}.weight", classes, CHANNELS, scale=1.5)
        self.weights[f"{name}.bias"] = np.zeros(classes, np.float32)
        self.nodes.append(helper.make_node("Gemm", [features, weight, f"{name}.bias"], [output], name=name, transB=1))

    def save(self, path: Path, **outputs: int) -> None:
        """Write the model with the `outputs`: name -> number of scores."""
        graph = helper.make_graph(
            self.nodes,
            "kit",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *SAMPLE])],
            [
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size])
                for name, size in outputs.items()
            ],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def convolutional(path: Path) -> None:
    """Two convolutions with batch norms and a shortcut, then the mean and a classifier."""
    net = Net(7)
    net.classifier("fc", _features(net), "logits", CLASSES)
    net.save(path, logits=CLASSES)


def turning(path: Path) -> None:
    """The convolutional net with a second classifier, of the turns of an image."""
    net = Net(7)
    features = _features(net)
    net.classifier("fc", features, "logits", CLASSES)
    net.classifier("turn", features, "turns", TURNS)
    net.save(path, logits=CLASSES, turns=TURNS)


def _features(net: Net) -> str:
    """The features [N, 8] of the convolutional net."""
    pads = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    x = net.node("Conv", "conv1", "x", net.weight("conv1.weight", CHANNELS, 3, 3, 3, scale=0.3), **pads)
    first = net.node("Relu", "relu1", net.batch_norm("bn1", x))
    x = net.node("Conv", "conv2", first, net.weight("conv2.weight", CHANNELS, CHANNELS, 3, 3, scale=0.2), **pads)
    x = net.node("Relu", "relu2", net.node("Add", "sum", net.batch_norm("bn2", x), first))
    return net.node("Flatten", "flatten", net.node("GlobalAveragePool", "pool", x))


def transformer(path: Path) -> None:
    """A vision transformer: patches of 4x4, a class token, two blocks of two heads, a classifier of the class token."""
    net = Net(11)
    filters = net.weight("embed.weight", CHANNELS, 3, PATCH, PATCH, scale=0.15)
    x = net.node("Conv", "embed", "x", filters, strides=[PATCH, PATCH], kernel_shape=[PATCH, PATCH])
    rows = net.node("Shape", "rows", x, start=0, end=1)
    patches = net.node("Reshape", "patches.flat", x, net.whole("patches.shape", 0, CHANNELS, -1))
    patches = net.node("Transpose", "patches", patches, perm=[0, 2, 1])
    sizes = net.node("Concat", "token.shape", rows, net.whole("token.sizes", 1, CHANNELS), axis=0)
    token = net.node("Expand", "token.each", net.weight("token", 1, 1, CHANNELS, scale=0.5), sizes)
    x = net.node("Concat", "tokens", token, patches, axis=1)
    x = net.node("Add", "placed", x, net.weight("places", 1, TOKENS, CHANNELS, scale=0.2))
    for block in range(BLOCKS):
        x = _block(net, f"blocks.{block}", x)
    x = net.layer_norm("norm", x)
    net.weights["first"] = np.array(0, np.int64)
    net.classifier("fc", net.node("Gather", "taken", x, "first", axis=1), "logits", CLASSES)
    net.save(path, logits=CLASSES)


def _block(net: Net, name: str, x: str) -> str:
    """Attention and two linear layers, each behind a layer norm and beside a shortcut."""
    mixed = net.linear(f"{name}.qkv", net.layer_norm(f"{name}.norm1", x), CHANNELS, 3 * CHANNELS)
    parts = [f"{name}.{part}" for part in ("q", "k", "v")]
    sizes = net.whole(f"{name}.sizes", CHANNELS, CHANNELS, CHANNELS)
    net.nodes.append(helper.make_node("Split", [mixed, sizes], parts, name=f"{name}.split", axis=2))
    shape = net.whole(f"{name}.heads", 0, 0, HEADS, CHANNELS // HEADS)
    q, k, v = (
        net.node("Transpose", f"{part}.heads", net.node("Reshape", f"{part}.apart", part, shape), perm=order)
        for part, order in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    net.weights[f"{name}.half"] = np.array((CHANNELS // HEADS) ** -0.5, np.float32)
    scores = net.node("Mul", f"{name}.scores", net.node("MatMul", f"{name}.products", q, k), f"{name}.half")
    heads = net.node("MatMul", f"{name}.seen", net.node("Softmax", f"{name}.shares", scores, axis=-1), v)
    joined = net.node("Transpose", f"{name}.turned", heads, perm=[0, 2, 1, 3])
    joined = net.node("Reshape", f"{name}.joined", joined, net.whole(f"{name}.width", 0, 0, CHANNELS))
    x = net.node("Add", f"{name}.middle", x, net.linear(f"{name}.project", joined, CHANNELS, CHANNELS))
    wide = net.linear(f"{name}.rise", net.layer_norm(f"{name}.norm2", x), CHANNELS, 2 * CHANNELS)
    fall = net.linear(f"{name}.fall", net.node("Relu", f"{name}.relu", wide), 2 * CHANNELS, CHANNELS)
    return net.node("Add", name, x, fall)
