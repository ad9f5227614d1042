"""The cache as papers count it: the columns of MECTA's and SURGEON's tables from the structure of their networks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.conftest import Run
from tests.support.source_models import saved, source
from tests.support.whole_models import MODELS, SINGLE, compiled, normal, sites_of
from ttac.passes.graph.builder import Builder
from ttac.passes.norms.norm_sites import find_norms
from ttac.passes.plan.published_cache import PublishedCache, published_cache

MIB = 2**20


class Network:
    """Layers with sizes and no weights: those are graph inputs, named but never given."""

    def __init__(self, side: int) -> None:
        self.x = ir.val("x", SINGLE, ["N", 3, side, side])
        self.graph = ir.Graph([self.x], [], nodes=[], opset_imports={"": 17}, name="net")
        self.op = Builder(self.graph, "source", 17)

    def conv(self, x: ir.Value, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> ir.Value:
        weight = ir.val(f"w{len(self.graph.inputs)}", SINGLE, [cout, int(str(x.shape[1])) // groups, kernel, kernel])  # type: ignore[index]
        self.graph.inputs.append(weight)
        pad = kernel // 2
        return self.op.Conv(x, weight, strides=[stride] * 2, pads=[pad] * 4, group=groups)

    def norm(self, x: ir.Value) -> ir.Value:
        ones = np.ones(int(str(x.shape[1])), np.float32)  # type: ignore[index]
        return self.op.BatchNormalization(x, ones, ones, ones, ones)

    def relu(self, x: ir.Value) -> ir.Value:
        return self.op.Relu(x)

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.op.Add(x, y)

    def pool(self, x: ir.Value) -> ir.Value:
        return self.op.MaxPool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])

    def counted(self, x: ir.Value, classes: int) -> PublishedCache:
        """With a head behind `x`."""
        features = int(str(x.shape[1]))  # type: ignore[index]
        weight = ir.val("fc", const_value=ir.tensor(np.zeros((classes, features), np.float32), name="fc"))
        self.graph.register_initializer(weight)
        self.graph.outputs.append(self.op.Gemm(self.op.Flatten(self.op.GlobalAveragePool(x)), weight, transB=1))
        model = ir.Model(self.graph, ir_version=8)
        return published_cache(model.graph, find_norms(model).sites)


def bottlenecks(net: Network, x: ir.Value, plan: Iterator[tuple[int, int, int]], groups: int) -> ir.Value:
    """Blocks of (inner channels, outer channels, stride), which the convolution in the middle has."""
    for inner, outer, stride in plan:
        y = net.relu(net.norm(net.conv(x, inner, 1)))
        y = net.relu(net.norm(net.conv(y, inner, 3, stride, groups)))
        y = net.norm(net.conv(y, outer, 1))
        same = stride == 1 and x.shape[1] == outer  # type: ignore[index]
        x = net.relu(net.add(y, x if same else net.norm(net.conv(x, outer, 1, stride))))
    return x


def resnext29() -> PublishedCache:
    net = Network(32)
    x = net.relu(net.norm(net.conv(net.x, 64, 3)))
    blocks = ((w, 2 * w, 2 if w > 128 and not i else 1) for w in (128, 256, 512) for i in range(3))
    return net.counted(bottlenecks(net, x, blocks, 4), 100)


def resnet50() -> PublishedCache:
    net = Network(224)
    x = net.pool(net.relu(net.norm(net.conv(net.x, 64, 7, 2))))
    stages = ((64, 3), (128, 4), (256, 6), (512, 3))
    blocks = ((w, 4 * w, 2 if w > 64 and not i else 1) for w, depth in stages for i in range(depth))
    return net.counted(bottlenecks(net, x, blocks, 1), 1000)


def wrn28_10() -> PublishedCache:
    net = Network(32)
    x = net.conv(net.x, 16, 3)
    for width in (160, 320, 640):
        for i in range(4):
            stride = 2 if width > 160 and not i else 1
            z = net.relu(net.norm(x))
            y = net.conv(net.relu(net.norm(net.conv(z, width, 3, stride))), width, 3)
            x = net.add(x if i else net.conv(z, width, 1, stride), y)
    return net.counted(net.relu(net.norm(x)), 10)


PUBLISHED = [
    (wrn28_10, 200, (125.0, 1762.5, 3696.6)),
    (resnext29, 200, (200.0, 2725.0, 5403.1)),
    (resnext29, 8, (8.0, 109.0, 216.1)),  # the paper prints 216.0, and 5403.1 for 25 times as many
    (resnet50, 64, (196.0, 2713.4, 5317.0)),
]
"""MiB of METHODS: largest input, inputs of norms, inputs of all; as the papers' tables round them."""


@pytest.mark.parametrize(("network", "batch", "expected"), PUBLISHED)
def test_the_figures_of_the_papers(network: object, batch: int, expected: tuple[float, ...]) -> None:
    cache = network()  # type: ignore[operator]
    found = [size / MIB for size in (cache.largest(batch), cache.norms(batch), cache.all(batch))]
    assert [round(size, 1) for size in found] == [pytest.approx(size, abs=0.051) for size in expected]


def test_with_the_ratios_that_are_kept() -> None:
    """The sum of keep ratio times input over the layers that have one: a norm's, with norms only."""
    cache = resnext29()
    ratios = {layer.layer: 0.25 for layer in cache.layers if layer.norm}
    assert cache.kept(8, ratios) == cache.norms(8) // 4 and cache.kept(8, {}) == 0
    assert cache.kept(8, dict.fromkeys((layer.layer for layer in cache.layers), 1.0)) == cache.all(8)
    first = next(layer for layer in cache.layers if layer.norm)
    assert cache.kept(8, {**ratios, first.layer: 1.0}) - cache.kept(8, ratios) == 8 * first.bytes * 3 // 4


def test_products_of_activations_have_no_weight() -> None:
    """Attention multiplies queries with keys; of those nothing is counted, of the projections their input is."""
    model = normal(MODELS["transformer"])
    cache = published_cache(model.graph, sites_of(model))
    products = [node for node in model.graph if node.op_type in ("MatMul", "Gemm", "Conv")]
    weighted = [node for node in products if any(v is not None and v.const_value is not None for v in node.inputs[1:2])]
    assert 0 < len(weighted) < len(products)
    assert [layer.layer for layer in cache.layers if not layer.norm] == [str(node.name) for node in weighted]
    assert all(layer.bytes > 0 for layer in cache.layers)


def test_it_stands_in_the_report_and_in_inspect(run: Run, tmp_path: Path) -> None:
    bundle = compiled(saved(source(), tmp_path), tmp_path, batch=6)
    told = json.loads((bundle / "report.json").read_text())["published_cache"]
    # A convolution on [3, 8, 8], a norm on [4, 8, 8] or so, and a classifier on its channels.
    assert told["batch"] == 6 and told["largest_input_bytes"] == told["norm_inputs_bytes"] > 0
    assert told["all_inputs_bytes"] > told["norm_inputs_bytes"]
    seen = run("inspect", str(bundle), "--plan")
    assert seen.code == 0 and "published cache\n" in seen.out and "  largest input" in seen.out
