"""Norm, depthwise convolution and norm as one node, and which chains keep their nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from tests.passes.blocked.test_blocked_graphs import names_outside, step_graphs
from tests.support.whole_models import MODELS, compiled
from ttac.passes.kernels.depthwise import fuse_depthwise
from ttac.passes.kernels.linked_graphs import LinkedGraphs, version_of
from ttac.passes.kernels.with_kernels import with_kernels

MAP, VECTOR = "float[2,16,6,6]", "float[16]"
VECTORS = ", ".join(f"{VECTOR} {name}" for name in ("s1", "b1", "s2", "b2"))
MOMENTS = ", ".join(f"{VECTOR} {name}" for name in ("m1", "v1", "m2", "v2"))
GRADIENTS = ", ".join(f"{VECTOR} {name}" for name in ("ds2", "db2"))
WINDOW = "kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 16"
NORM = 'block = 1, act = "relu"'
FORWARD = f"""forward ({MAP} x1, {VECTORS}, float[16,1,3,3] w) => ({MAP} y2, {MAP} x2, {MOMENTS}) <{MAP} y1> {{
    y1, m1, v1 = ttac.kernels.NormForward <{NORM}> (x1, s1, b1)
    x2 = Conv <{WINDOW}> (y1, w)
    y2, m2, v2 = ttac.kernels.NormForward <{NORM}> (x2, s2, b2)
}}"""
OUTER = f"""outer ({MAP} dy, {MAP} x2, {VECTORS}, {MOMENTS}) => ({MAP} dx2, {GRADIENTS}) <{MAP} dy2> {{
    dy2, none1, none2 = ttac.kernels.NormBackward <{NORM}> (dy, x2, s1, b1, m2, v2)
    dx2, ds2, db2 = ttac.kernels.NormBackward <{NORM}> (dy2, x2, s2, b2, m2, v2)
}}"""
INNER = f"""inner ({MAP} dx2, {MAP} x1, float[16,1,3,3] w, {VECTORS}, {MOMENTS}) =>
    ({MAP} dx1, {VECTOR} ds1, {VECTOR} db1) <{MAP} dy1> {{
    dy1 = ConvTranspose <{WINDOW}> (dx2, w)
    dx1, ds1, db1 = ttac.kernels.NormBackward <{NORM}> (dy1, x1, s1, b1, m1, v1)
}}"""
READ = {"y2", "dx1", "ds1", "db1", "ds2", "db2"}


def chain(forward: str = FORWARD, outer: str = OUTER) -> LinkedGraphs:
    """The graphs of a step whose backward has two stages, which meet within the chain."""
    return linked(forward=forward, outer=outer, inner=INNER)


def linked(**texts: str) -> LinkedGraphs:
    """The graphs of the texts, which run in turn."""
    versions = '<ir_version: 8, opset_import: ["": 18, "ttac.kernels": 3]>'
    return LinkedGraphs({name: ir.from_proto(onnx.parser.parse_model(f"{versions} {t}")) for name, t in texts.items()})


def operators(graphs: Mapping[str, ir.Model]) -> dict[str, list[str]]:
    return {name: [node.op_type for node in model.graph] for name, model in graphs.items()}


def results(graphs: Mapping[str, ir.Model]) -> dict[str, np.ndarray]:
    """The outputs of the graphs, which run in turn."""
    library = pytest.importorskip("ttac_kernels", reason="needs ttac-kernels (make kernels)").library_path()
    random = np.random.default_rng(0)
    values = {name: random.standard_normal((2, 16, 6, 6), np.float32) for name in ("x1", "dy")}
    values["w"] = random.standard_normal((16, 1, 3, 3), np.float32)
    values |= {name: random.uniform(0.5, 1.5, 16).astype(np.float32) for name in ("s1", "b1", "s2", "b2")}
    for model in graphs.values():
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(library))
        session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
        names = [value.name for value in session.get_outputs()]
        fed = {value.name: values[value.name] for value in session.get_inputs()}
        values |= dict(zip(names, session.run(names, fed), strict=True))
    return values


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3", "efficientnet"])
def test_depthwise_convolutions_between_norms_have_a_node(name: str, tmp_path: Path) -> None:
    bundle = compiled(MODELS[name], tmp_path, batch=8, method="tent")
    nodes = [
        node for names in operators(with_kernels(step_graphs(bundle), names_outside(bundle))).values() for node in names
    ]
    assert nodes.count("DepthwiseForward") == nodes.count("DepthwiseBackward") == 2


def test_a_chain_crosses_the_stages_of_the_backward() -> None:
    before, graphs = results(chain().models), chain()
    fuse_depthwise(graphs)
    graphs.tidy(READ)
    found = operators(graphs.models)
    assert found == {"forward": ["DepthwiseForward"], "outer": ["NormBackward"], "inner": ["DepthwiseBackward"]}
    assert {value.name for value in graphs.models["inner"].graph.outputs} == READ - {"y2"}
    assert version_of(graphs.models["inner"].graph) == 7
    after = results(graphs.models)
    for name in READ:
        assert np.allclose(after[name], before[name], rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("group = 16", 'group = 16, dilations = [1, 1], auto_pad = "SAME_UPPER"'),
        ("x2 = Conv", "z = Neg(y1) x2 = Conv"),
        ("y2, m2, v2 = ttac.kernels.NormForward", "z = Neg(x2) y2, m2, v2 = ttac.kernels.NormForward"),
    ],
)
def test_a_chain_with_other_readers_or_windows_keeps_its_nodes(old: str, new: str) -> None:
    graphs = chain(FORWARD.replace(old, new, 1))
    fuse_depthwise(graphs)
    assert operators(graphs.models)["forward"].count("NormForward") == 2
    assert operators(graphs.models)["inner"] == ["ConvTranspose", "NormBackward"]


def test_a_graph_that_would_be_empty_keeps_its_norm() -> None:
    lines = OUTER.replace(
        "dx2, ds2, db2 = ttac.kernels.NormBackward <" + NORM + "> (dy2,",
        "dx2, ds2, db2 = ttac.kernels.NormBackward <" + NORM + "> (dy,",
    )
    alone = "\n".join(line for line in lines.splitlines() if "none1" not in line)
    graphs = chain(outer=alone)
    fuse_depthwise(graphs)
    assert operators(graphs.models)["outer"] == ["NormBackward"]
    assert operators(graphs.models)["inner"] == ["ConvTranspose", "NormBackward"]
