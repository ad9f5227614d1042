"""Bring a loaded model into the one form that all later rooms expect.

The result has one float32 input [N, ints...] and one output, in opset 18 to 21. Every value has a dtype and a shape,
whose only symbol is the batch N. It has no Constant, Identity or Dropout nodes. `fuse_norms` has rewritten its norms.
Every node has a unique name and layer.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.errors import UnsupportedError, UsageError
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import Executable, rows
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.layer_names import name_layers, name_nodes, unique_layers
from ttac.passes.graph.match import only_reader, with_constant
from ttac.passes.graph.rewire import replace
from ttac.passes.graph.shapes import BATCH, dims
from ttac.passes.load.model_file import REFERENCE, Say, quiet
from ttac.passes.normalise.batch_walk import ROOM, fixed_batch, ints
from ttac.passes.normalise.folded_affines import fuse_affines
from ttac.passes.normalise.fuse_norms import fuse_norms
from ttac.passes.normalise.operand_shapes import refuse_wrong_operands
from ttac.passes.normalise.simplify import simplify, worthwhile
from ttac.passes.normalise.traced_batch import free_batch, loses_batch

HEAD = "ttac.head"
"""Model metadata: the kind of the output, one of `softmax`, `log_softmax`, `sigmoid`, `logits`."""

HEADS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
"""Kind of the output by the operator that produces it."""
LARGEST_BATCH = 1 << 26
"""Values of the batch on which the normal form is compared with the source: 256 MiB as float32."""
TOLERANCE = 1e-4
"""Largest difference from the loaded model, relative to its largest output."""

Simplifier = Callable[[ir.Model, Say], ir.Model]


def normalise(
    model: ir.Model, *, shape: Sequence[int] | None = None, say: Say = quiet, simplifier: Simplifier | None = simplify
) -> ir.Model:
    """Return the normal form of a loaded model, after a check that it computes the same on 1, 2 and 3 samples.

    Args:
        model: from `load`; it stays unchanged.
        shape: of one sample, (3, 224, 224), where the file leaves a dimension open.
        say: receives one line for each change.
        simplifier: None leaves out the simplification.

    Raises UsageError if `shape` contradicts the file. Raises UnsupportedError if a dimension stays open, if a node
    fixes the batch, or if shapes cannot be inferred.
    """
    reference = model.meta.get(REFERENCE) or model.clone()
    model = model.clone()
    traced = bind(model, shape)
    resolve_casts(model)
    tidy(model)
    if simplifier and _control_flow(model):
        model = simplifier(model, say)
        tidy(model)
    _refuse_control_flow(model)
    model, rewritten, traced = _freed(model, traced)
    tidy(model)
    if simplifier and worthwhile(model):
        model = _simplified(model, simplifier, say)
    _refuse_batchless(model, traced)
    refuse_wrong_operands(model)
    join_operators(model)
    name_layers(model)
    fuse_norms(model)
    _refuse_difference(reference, model, traced, rewritten)
    if rewritten:
        say(f"the batch, {traced} in the file, is free now: {len(rewritten)} nodes rewritten")
    finish(model)
    model.meta.pop(REFERENCE, None)
    return model


def _simplified(model: ir.Model, simplifier: Simplifier, say: Say) -> ir.Model:
    fuse_affines(model)
    _forget_shapes(model)
    model = simplifier(model, say)
    tidy(model)
    free_batch(model, None)
    return model


def bind(model: ir.Model, shape: Sequence[int] | None) -> int | None:
    """Bind every dimension of the input but the batch, in place, and forget the shapes that other tools inferred.

    Returns the batch that the file was exported with, None where it is open.
    """
    x = model.graph.inputs[0]
    stated: list[int | str] | None = None
    if x.shape is not None:
        stated = [d if isinstance(d, int) and d > 0 else str(getattr(d, "value", None) or "?") for d in x.shape]
    if stated is not None and len(stated) < 2:
        raise UnsupportedError(
            f"the input `{x.name}` has shape {x.shape}, without an axis after the batch",
            hint="export a model that takes [N, ...], one row or image for each sample",
        )
    sample = _sample(str(x.name), None if stated is None else stated[1:], shape)
    _forget_shapes(model)
    batch = stated[0] if stated else BATCH
    x.shape = ir.Shape([batch if isinstance(batch, int) else BATCH, *sample])
    return batch if isinstance(batch, int) else None


def _sample(name: str, stated: list[int | str] | None, shape: Sequence[int] | None) -> list[int]:
    if shape is not None:
        sizes = [int(size) for size in shape]
        if stated is not None and (
            len(stated) != len(sizes) or any(isinstance(a, int) and a != b for a, b in zip(stated, sizes, strict=True))
        ):
            raise UsageError(
                f"samples of shape {sizes} do not fit the input `{name}`, which takes {_text(stated)}",
                hint=f"`--shape {'x'.join(str(size) for size in stated)}`" if stated else "",
            )
        return sizes
    if stated is None or any(isinstance(size, str) for size in stated):
        unbound = [f"`{size}`" for size in stated or [] if isinstance(size, str)]
        raise UnsupportedError(
            f"the size of {', '.join(unbound) or 'a sample'} is open; only the batch may be",
            where=f"input `{name}` {_text(stated) if stated is not None else ''}".rstrip(),
            hint="state the shape of a sample: `--shape 3x224x224`, or give samples with `--calibration`",
        )
    return [int(size) for size in stated]


def _text(stated: Sequence[int | str]) -> str:
    return "[N, " + ", ".join(str(size) for size in stated) + "]"


def resolve_casts(model: ir.Model) -> None:
    """Replace CastLike, whose constants cannot be folded, by Cast or by its input, in place."""
    casts = [node for node in model.graph if node.op_type == "CastLike"]
    if not casts:
        return
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    for node in casts:
        x, like = node.inputs
        if x is None or like is None or like.dtype is None:
            continue
        if x.dtype == like.dtype:
            replace(model.graph, node, x)
        else:
            cast = ir.node("Cast", [x], {"to": int(like.dtype)}, name=node.name)
            cast.outputs[0].name = node.outputs[0].name
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [cast], node.outputs, cast.outputs)
    _forget_shapes(model)


def _forget_shapes(model: ir.Model) -> None:
    for value in [v for node in model.graph for v in node.outputs if not v.is_graph_output()]:
        value.shape = None


def tidy(model: ir.Model) -> None:
    """Turn constants into initializers; remove Identity nodes, unused nodes and biases of zeros; in place."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in [node for node in model.graph if node.op_type == "Identity" and node.inputs[0] is not None]:
        replace(model.graph, node, node.inputs[0])
    for node in model.graph:
        bias = node.inputs[2] if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 2 else None
        if bias is not None and bias.const_value is not None and not bias.const_value.numpy().any():
            node.resize_inputs(2)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)


def join_operators(model: ir.Model) -> None:
    """Remove Reshapes to the same shape, and write linear layers as one operator.

    tf2onnx leaves such Reshapes where axes of size 1 were transposed.
    """
    for node in [node for node in model.graph if node.op_type == "Reshape"]:
        x, y = node.inputs[0], node.outputs[0]
        if x is not None and x.shape is not None and y.shape is not None and dims(x) == dims(y):
            replace(model.graph, node, x)
    join_linear(model)
    common.RemoveUnusedNodesPass()(model)


def join_linear(model: ir.Model) -> None:
    """Write a linear layer on rows, MatMul and Add of constants, as one Gemm, as engines do."""
    for node in [node for node in model.graph if node.op_type == "MatMul"]:
        parts, total = with_constant(node), only_reader(node.outputs[0], "Add")
        bias = with_constant(total)
        if parts is None or total is None or bias is None or node.inputs[0] is not parts[0]:
            continue
        x, kernel = parts
        if x.shape is None or len(x.shape) != 2 or kernel.ndim != 2 or bias[1].size != kernel.shape[1]:
            continue
        shift = next(value for value in total.inputs if value is not node.outputs[0])
        if bias[1].ndim != 1:
            shift = Builder(model.graph, ROOM, model.opset_imports[""]).constant(bias[1].reshape(-1))
        y, name = total.outputs[0], node.name
        joined = ir.node("Gemm", [x, node.inputs[1], shift], name=name, metadata_props=dict(node.metadata_props))
        ir.convenience.replace_nodes_and_values(model.graph, total, [total, node], [joined], [y], [joined.outputs[0]])


def _control_flow(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if any(a.type == ir.AttributeType.GRAPH for a in n.attributes.values())]


def _refuse_control_flow(model: ir.Model) -> None:
    inner = _control_flow(model)
    if inner:
        raise UnsupportedError(
            f"control flow that depends on the input: {', '.join(sorted({f'`{node.op_type}`' for node in inner}))}",
            where="\n     ".join(f"node `{node.name}` ({node.op_type})" for node in inner[:8]),
            hint="export a model without loops and branches on values; fixed ones are unrolled by the exporter",
        )


def _freed(model: ir.Model, traced: int | None) -> tuple[ir.Model, list[str], int | None]:
    """Return the model with a free batch, the names of the rewritten nodes, and the batch of the trace.

    A file that declares a free batch may still contain numbers, from a trace with one sample.
    """
    if traced is not None:
        return model, free_batch(model, traced), traced
    attempt = model.clone()
    try:
        free_batch(attempt, None)
        _refuse_batchless(attempt, None)
        return attempt, [], None
    except UnsupportedError as error:
        try:
            return model, free_batch(model, 1), 1
        except UnsupportedError:
            raise error from None


def _refuse_batchless(model: ir.Model, traced: int | None) -> None:
    y = model.graph.outputs[0]
    first = y.shape[0] if y.shape else None
    if isinstance(first, ir.SymbolicDim) and first.value == BATCH:
        return
    node = loses_batch(model) or y.producer()
    culprit = f"node `{node.name}` ({node.op_type})" if node else f"output `{y.name}`"
    raise fixed_batch(culprit, f"the output `{y.name}` is {y.shape}, without a row for each sample", traced)


def _refuse_difference(reference: ir.Model, model: ir.Model, traced: int | None, rewritten: Sequence[str]) -> None:
    """Run the model as loaded, on the batch it was exported with, and the result on 1, 2 and 3 samples."""
    x = model.graph.inputs[0]
    assert x.shape is not None
    sample = ints(x.shape[1:])
    count = 3 if traced is None else max(3, traced)
    _refuse_large(x, (count, *sample))
    samples = np.random.default_rng(0).standard_normal((count, *sample)).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {"reference": reference, "normal": model})
        before, after = (Executable(Path(folder) / f"{name}.onnx") for name in ("reference", "normal"))
        expected = rows(before, reference, samples, traced or 3)
        for size in (1, 2, 3):
            results = rows(after, model, samples[:size], size)
            worst = _distance(results, expected[:size])
            if worst > TOLERANCE * max(float(np.max(np.abs(expected[np.isfinite(expected)]), initial=0.0)), 1e-6):
                raise _differs(size, worst, traced, rewritten)


def _refuse_large(x: ir.Value, batch: Sequence[int]) -> None:
    """Raise UnsupportedError for a batch that is too large to execute."""
    if math.prod(batch) > LARGEST_BATCH:
        raise UnsupportedError(
            f"{batch[0]} samples of shape {list(batch[1:])} are {math.prod(batch):,} values, too many to execute",
            where=f"input `{x.name}`",
            hint="state the size that the device uses: `--shape 3x224x224`",
        )


def _distance(results: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference. NaN and infinity must be where they are expected."""
    same = (results == expected) | (np.isnan(results) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(results - expected))
    return float(np.max(np.nan_to_num(apart, nan=np.inf), initial=0.0))


def _differs(size: int, worst: float, traced: int | None, rewritten: Sequence[str]) -> UnsupportedError:
    if rewritten:
        nodes = ", ".join(f"`{name}`" for name in rewritten[:8])
        return fixed_batch(
            f"nodes {nodes}", f"rewritten for {size} samples, they give results off by {worst:.2g}", traced
        )
    return UnsupportedError(
        "the samples of a batch influence each other",
        where=f"the outputs for {size} samples are off by {worst:.2g} from those of the file, batch {traced or 3}",
        hint="look for an operator that reduces, sorts or normalises over the first axis",
    )


def finish(model: ir.Model) -> None:
    """Give nodes unique names and layers, and note the kind of the output; in place."""
    unique_layers(model)
    name_nodes(model)
    producer = model.graph.outputs[0].producer()
    model.metadata_props[HEAD] = HEADS.get(producer.op_type, "logits") if producer else "logits"
