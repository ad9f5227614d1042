"""Graph files: each weight is written once, outside the graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from safetensors.numpy import load_file

from tests.support.whole_models import MODELS, SINGLE, compiled, normal, samples
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import Executable, run
from ttac.passes.graph.graph_files import INLINE_BYTES, WEIGHTS, write_graphs


def test_a_fed_weight_is_stored_once_under_its_own_name(tmp_path: Path) -> None:
    """The runtime finds the weight by name, and a graph with the same constant points to the same bytes."""
    weight = samples((8, 64, 1, 1), 1)[0]
    graph = ir.Graph([ir.val("x", SINGLE, ["N", 64, 4, 4])], [], nodes=[], opset_imports={"": 18}, name="held")
    graph.outputs.append(Builder(graph, "test").Conv(graph.inputs[0], weight, name="y"))
    write_graphs(tmp_path, {"held": ir.Model(graph, ir_version=8)}, {"conv.weight": weight})
    stored = load_file(tmp_path / WEIGHTS)
    assert list(stored) == ["conv.weight"]
    x = samples((64, 4, 4), 2)
    np.testing.assert_allclose(
        Executable(tmp_path / "held.onnx")({"x": x})["y"], run(ir.Model(graph, ir_version=8), {"x": x})["y"]
    )


def test_weights_are_written_once_and_outside_the_graphs(tmp_path: Path) -> None:
    bundle = compiled(MODELS["resnet"], tmp_path, batch=8)
    weights = load_file(bundle / WEIGHTS)
    contents = [(array.dtype, array.shape, array.tobytes()) for array in weights.values()]
    assert len(contents) == len(set(contents))
    sizes = {path.name: path.stat().st_size for path in bundle.iterdir()}
    source_bytes = sum(t.nbytes for t in map(onnx.numpy_helper.to_array, onnx.load(MODELS["resnet"]).graph.initializer))
    assert sizes[WEIGHTS] < 2.2 * source_bytes  # the kernels, and those the input gradients need flipped
    for path in bundle.glob("*.onnx"):
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            inside = tensor.data_location != onnx.TensorProto.EXTERNAL
            floats = tensor.data_type == onnx.TensorProto.FLOAT
            assert inside == (onnx.numpy_helper.to_array(tensor, str(bundle)).nbytes <= INLINE_BYTES or not floats)
            if not inside:
                assert {entry.key: entry.value for entry in tensor.external_data}["location"] == WEIGHTS


def test_writing_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = normal(MODELS["resnet"])
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    write_graphs(tmp_path, {"graph": model})
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before
    x = samples((3, 16, 16), 2)
    np.testing.assert_array_equal(
        Executable(tmp_path / "graph.onnx")({"x": x})["logits"], run(normal(MODELS["resnet"]), {"x": x})["logits"]
    )
