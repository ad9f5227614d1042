"""`--emit ort-training`: the files of onnxruntime-training's own API, for a method that is forward, backward, update.

`training_model.onnx` gives loss and outputs and adds gradients to buffers, `eval_model.onnx` gives loss and outputs,
`optimizer_model.onnx` holds one operator of the engine, and `checkpoint` the trained tensors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from ttac.bundle_content import BundleContent
from ttac.errors import RuntimeMissingError, UnsupportedError
from ttac.method_fit import methods_that_train
from ttac.options import TRAINING_FILES
from ttac.program_writer import programs
from ttac.runtime.engine_import import engine

MICROSOFT = "com.microsoft"
IR_VERSION = 10
"""Highest IR version that the last training wheel, 1.19.2, reads."""
WHERE = "`--emit ort-training`"
ENGINE_HINT = "`pip install 'ttac[ort-training]'`"
RESET_FLAG = "lazy_reset_grad"
"""Input of the training model: whether the buffers of the gradients start from zero."""


def write_training_files(content: BundleContent, folder: Path) -> None:
    """Write the four files into `folder`.

    Raises:
        UnsupportedError: the step of the method cannot be said in this form; the message has the reason.
        RuntimeMissingError: the engine is not the training build, which writes the checkpoint.
    """
    _refuse_settings(content)
    chain = _chain(content)
    parameters = {tensor.name: tensor.initial for tensor in content.joint.parameters}
    merged = MergedGraph([ir.to_proto(content.graphs[name]).graph for name in chain], content.fed_weights)
    outputs = [_loss(content, merged), *content.outputs]
    inputs = [ir.to_proto(value) for value in content.inputs]
    trained = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in parameters.items()
    ]
    gradients = [merged.now[f"{name}.grad"] for name in parameters]
    _refuse_state(merged.inputs_of([*outputs, *gradients]), {*content.state.inputs, *parameters})
    training_file, eval_file, optimizer_file, checkpoint = TRAINING_FILES
    opset = content.graphs["forward"].opset_imports[""]
    training = merged.graph("training", [*inputs, *trained], outputs, gradients)
    _accumulate(training, parameters, gradients)
    _save(training, opset, folder / training_file)
    _save(merged.graph("eval", [*inputs, *trained], outputs), opset, folder / eval_file)
    _save(_optimizer(content.state.options.settings), opset, folder / optimizer_file)
    _save_checkpoint(parameters, folder / checkpoint)


Named = TypeVar("Named", onnx.NodeProto, TensorProto, onnx.ValueInfoProto)


class MergedGraph:
    """Graphs of a step one after another, with a name of its own for each value.

    Attributes:
        now: name of a value in the graphs -> its name in the merged graph, where the last graph with the name counts.
    """

    def __init__(self, graphs: Sequence[onnx.GraphProto], weights: Mapping[str, np.ndarray]) -> None:
        self.now: dict[str, str] = {}
        self._weights = {name: numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()}
        self._makers: dict[str, onnx.NodeProto] = {}
        self._types: dict[str, onnx.ValueInfoProto] = {}
        for number, graph in enumerate(graphs):
            self._append(graph, f"{number}/")

    def _append(self, graph: onnx.GraphProto, prefix: str) -> None:
        """Add a graph; values that an earlier graph also makes get the `prefix`, and later graphs read the new ones."""
        local = {value.name: self.now.get(value.name, value.name) for value in graph.input}
        for weight in graph.initializer:
            local[weight.name] = self._named(weight.name, prefix)
            self._weights[local[weight.name]] = _renamed(weight, local[weight.name])
        for node in graph.node:
            for name in filter(None, node.output):
                local[name] = self._named(name, prefix)
            copy = _renamed(node, f"{prefix}{node.name}")
            copy.input[:] = [local.get(name, name) for name in node.input]
            copy.output[:] = [local.get(name, name) for name in node.output]
            self._makers |= dict.fromkeys(filter(None, copy.output), copy)
        self._types |= {local[value.name]: value for value in graph.output}
        self.now |= {name: local[name] for name in local}

    def _named(self, name: str, prefix: str) -> str:
        return f"{prefix}{name}" if name in self._makers or name in self._weights or name in self.now else name

    def has(self, name: str) -> bool:
        """Whether a node makes the value."""
        return name in self._makers

    def _nodes(self, outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """The nodes that `outputs` need, each once, in an order in which they can run."""
        ordered: dict[int, onnx.NodeProto] = {}
        wanted = {id(self._makers[name]) for name in outputs if name in self._makers}
        for node in reversed(list({id(node): node for node in self._makers.values()}.values())):
            if id(node) in wanted:
                ordered[id(node)] = node
                wanted |= {id(self._makers[name]) for name in node.input if name in self._makers}
        return list(reversed(ordered.values()))

    def inputs_of(self, outputs: Sequence[str]) -> set[str]:
        """Names that the nodes of `outputs` read and that nothing in the graphs makes."""
        read = {name for node in self._nodes(outputs) for name in node.input if name}
        return read - set(self._makers) - set(self._weights)

    def graph(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[str],
        also: Sequence[str] = (),
    ) -> onnx.GraphProto:
        """Return the graph of `outputs`, with the nodes that the values `also` need."""
        nodes = self._nodes([*outputs, *also])
        read = {value for node in nodes for value in node.input}
        weights = [weight for key, weight in self._weights.items() if key in read]
        scalar = helper.make_tensor_value_info("", TensorProto.FLOAT, [])
        types = [_renamed(self._types.get(output, scalar), output) for output in outputs]
        return helper.make_graph(nodes, name, inputs, types, weights)


def _renamed(message: Named, name: str) -> Named:
    """Return a copy of a node, a weight or the type of a value under another name."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.name = name
    return copy


def _chain(content: BundleContent) -> list[str]:
    """The graphs of a step before the update; raises UnsupportedError for a step with branches or further words."""
    words = programs(content)["step"]
    graphs = [word["run"] for word in words[:-1] if set(word) == {"run"}]
    method = content.state.options.method.name
    if len(graphs) != len(words) - 1 or not graphs or graphs[-1] != "update" or "return" not in words[-1]:
        raise UnsupportedError(
            f"the step of `{method}` with these settings has more than forward, backward and update",
            where=WHERE,
            hint="turn options off (`--set guard=off`), or run the bundle with `ttac.load`",
        )
    return graphs[:-1]


def _loss(content: BundleContent, merged: MergedGraph) -> str:
    """Name of the value that the files give as loss: the differentiated scalar, or one that the method reports.

    No graph of a bundle computes a scalar that only its own gradient would read.
    """
    loss = content.joint.loss
    assert loss is not None, "a method with an update has a loss"
    names = [str(value.name) for value in (loss.scalar, *loss.outputs)]
    return next(name for name in names if merged.has(name))


def _refuse_settings(content: BundleContent) -> None:
    """Raise UnsupportedError for an update that the engine's optimizers do not have."""
    settings = content.state.options.settings
    if settings.get("optimizer") == "sgd" and settings["momentum"]:
        _refuse("the engine's SGD has no momentum", "`--set momentum=0`, or `--set optimizer=adam`")
    for name, why in (
        ("weight_decay", "the engine's weight decay is not added to the gradient"),
        ("source_weight", "the engine's optimizers do not blend the source into the parameters"),
    ):
        if settings.get(name):
            _refuse(why, f"`--set {name}=0`")
    if "optimizer" not in settings or not content.joint.parameters:
        _refuse(
            f"`{content.state.options.method.name}` has no optimizer",
            f"choose a method that trains: {methods_that_train()}",
        )
    own = [tensor.name for tensor in content.joint.parameters if tensor.role != "parameter"]
    if own:
        _refuse(f"`{own[0]}` trains with a learning rate of its own", "run the bundle with `ttac.load`")


def _refuse(problem: str, hint: str) -> None:
    raise UnsupportedError(problem, where=WHERE, hint=hint)


def _refuse_state(read: set[str], known: set[str]) -> None:
    """Raise UnsupportedError if the step reads state that its forward or backward also moves."""
    if others := sorted(read - known):
        _refuse(
            f"the step reads the state `{others[0]}`, which the API does not keep", "run the bundle with `ttac.load`"
        )


def _accumulate(graph: onnx.GraphProto, parameters: Mapping[str, np.ndarray], gradients: Sequence[str]) -> None:
    """Add the buffers of the gradients: inputs, and one operator of the engine each."""
    for (name, array), gradient in zip(parameters.items(), gradients, strict=True):
        buffer, flag = f"{name}_grad.accumulation.buffer", f"{name}_grad.accumulation.out"
        graph.input.append(helper.make_tensor_value_info(buffer, TensorProto.FLOAT, array.shape))
        node = helper.make_node("InPlaceAccumulatorV2", [buffer, gradient, RESET_FLAG], [flag], domain=MICROSOFT)
        graph.node.append(node)
        graph.output.append(helper.make_tensor_value_info(flag, TensorProto.BOOL, [1]))
    graph.input.append(helper.make_tensor_value_info(RESET_FLAG, TensorProto.BOOL, [1]))


def _optimizer(settings: Mapping[str, Any]) -> onnx.GraphProto:
    """The graph of the engine's optimizer; the caller of the API sets the learning rate."""
    tensors, flag = helper.make_tensor_sequence_value_info, "updated"
    lists = ["params", "gradients", "first_order_moments"]
    if settings["optimizer"] == "sgd":
        node = helper.make_node("SGDOptimizerV2", ["learning_rate", *lists[:2]], [flag], domain=MICROSOFT)
    else:
        lists.append("second_order_moments")
        node = helper.make_node(
            "AdamWOptimizer",
            ["learning_rate", "step", *lists],
            [flag],
            domain=MICROSOFT,
            alpha=float(settings["beta1"]),
            beta=float(settings["beta2"]),
            epsilon=float(settings["eps"]),
            weight_decay=0.0,
            adam_mode=0,
            correct_bias=1,
        )
    inputs = [
        helper.make_tensor_value_info("learning_rate", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("step", TensorProto.INT64, [1]),
        *(tensors(name, TensorProto.FLOAT, None) for name in lists),
    ]
    return helper.make_graph([node], "optimizer", inputs, [helper.make_tensor_value_info(flag, TensorProto.BOOL, [1])])


def _save(graph: onnx.GraphProto, opset: int, path: Path) -> None:
    domains = {node.domain for node in graph.node}
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(MICROSOFT, 1)] if MICROSOFT in domains else [])]
    model = helper.make_model(graph, opset_imports=imports, producer_name="ttac", ir_version=IR_VERSION)
    onnx.save(model, path)


def _save_checkpoint(parameters: Mapping[str, np.ndarray], path: Path) -> None:
    """Write the trained tensors in the engine's own format."""
    save = getattr(engine().capi._pybind_state, "save_checkpoint", None)
    if save is None:
        version = engine().__version__
        raise RuntimeMissingError(f"onnxruntime {version} is no training build", where=WHERE, hint=ENGINE_HINT)
    trained = [
        numpy_helper.from_array(np.asarray(array), name).SerializeToString() for name, array in parameters.items()
    ]
    save(trained, [], os.fspath(path), False)
