"""Infer shapes as [N, ints...], by walking the graph with two imaginary batches, both prime.

A dimension with equal sizes for both batches is an int. A dimension that grows with the batch is N or a multiple of
N. The walk also computes small contents (the target of a Reshape), so that shape arithmetic disappears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.places import node_place
from ttac.passes.graph.rewire import initializer
from ttac.passes.graph.shapes import BATCH
from ttac.passes.load.model_file import KEPT

ROOM = "normalise"
OPEN = "?"
"""Symbol of a size of an output that only the data decide."""
IMAGINED = (101, 103)
"""The two imaginary batches."""
FOLDABLE_ELEMENTS = 1 << 16
"""Largest tensor, in elements, whose contents the walk computes."""

GROWTH_BYTES = 1 << 16
"""Bytes by which a folded constant may exceed the constants it is computed from."""

INFLATING = frozenset({"ConstantOfShape", "Expand", "EyeLike", "Range", "Tile"})
"""Operators whose output may be much larger than their inputs."""
LIKE_INPUT = frozenset({"GroupNormalization"})
"""Operators without shape inference in onnx, whose output has the shape of their first input."""

FIXED = "the batch is fixed"
"""Begin of the error about a node that fixes the batch."""
HINT = (
    "export with a dynamic batch: "
    '`torch.onnx.export(model, x, "model.onnx", dynamic_shapes=({0: torch.export.Dim("batch")},))`'
)

Shapes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class ValueFacts:
    """Facts about a value under both imaginary batches.

    Attributes:
        shapes: None where inference does not find them.
        data: the contents of small values that depend on shapes and constants only.
        outer: number of times that the whole batch repeats inside its dimension; 1 where the dimension is N or N
            times a factor.
    """

    dtype: ir.DataType | None
    shapes: Shapes | None
    data: tuple[np.ndarray, np.ndarray] | None = None
    outer: int = 1

    @property
    def axis(self) -> int | None:
        """The axis that grows with the batch; None if there is none."""
        grown = [i for i, (a, b) in enumerate(zip(*self.shapes or ((), ()), strict=True)) if a != b]
        return grown[0] if grown else None

    def at(self, batch: int) -> tuple[int, ...]:
        """Return the shape for `batch` samples."""
        assert self.shapes is not None
        return tuple(a if a == b else a // IMAGINED[0] * batch for a, b in zip(*self.shapes, strict=True))

    def symbolic(self) -> ir.Shape | None:
        """Return the shape, with N or a multiple of N for the dimension that grows."""
        if self.shapes is None:
            return None
        return ir.Shape([_symbol(a, b) for a, b in zip(*self.shapes, strict=True)])


def _symbol(first: int, second: int) -> int | str:
    if first == second:
        return first
    return BATCH if first == IMAGINED[0] else f"{first // IMAGINED[0]}*{BATCH}"


Rewrite = Callable[["Walk", ir.Node], "int | None"]
REWRITES: dict[str, Rewrite] = {}


def rewrites(*op_types: str) -> Callable[[Rewrite], Rewrite]:
    """Register the decorated function for nodes of these kinds; it runs before their outputs are inferred.

    It may return the number of times that the batch repeats inside its dimension of the output (`ValueFacts.outer`).
    """

    def register(function: Rewrite) -> Rewrite:
        REWRITES.update(dict.fromkeys(op_types, function))
        return function

    return register


def ints(shape: Iterable[object]) -> tuple[int, ...]:
    """Return the dimensions of a bound shape."""
    return tuple(int(str(size)) for size in shape)


class Walk:
    """State of one walk: the facts known so far about each value."""

    def __init__(
        self,
        model: ir.Model,
        traced: int | None,
        imagined: tuple[int, int] = IMAGINED,
        axes: Mapping[str, int | None] | None = None,
        open_sizes: bool = False,
    ) -> None:
        self.graph, self.opset, self.traced = model.graph, model.opset_imports[""], traced
        self.op = Builder(model.graph, ROOM, self.opset)
        self.unknown: list[ir.Node] = []
        self.rewritten: list[str] = []
        self._open, self._sized = open_sizes, set[ir.Value]()
        self._facts: dict[ir.Value, ValueFacts] = {}  # by object, not by id: Python reuses the id of a folded value
        for x in model.graph.inputs:
            assert x.shape is not None
            axis = _sample_axis(model, x) if axes is None else axes[str(x.name)]
            first, second = ([many if i == axis else size for i, size in enumerate(x.shape)] for many in imagined)
            self._learn(x, ValueFacts(x.dtype, (ints(first), ints(second))))

    def of(self, value: ir.Value) -> ValueFacts:
        """Return the facts about `value`; those of an initializer come from its tensor."""
        if value not in self._facts and value.const_value is not None:
            tensor = value.const_value
            shape = ints(tensor.shape)
            small = tensor.size <= (8 if tensor.dtype.is_floating_point() else FOLDABLE_ELEMENTS)
            data = tensor.numpy() if small else None
            self._learn(value, ValueFacts(tensor.dtype, (shape, shape), None if data is None else (data, data)))
        return self._facts.get(value, ValueFacts(value.dtype, None))

    def contents(self, value: ir.Value | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the contents of `value` for each imaginary batch.

        None unless small and made of shapes and constants only.
        """
        if value is None or self.of(value).data is not None:
            return None if value is None else self.of(value).data
        if value.const_value is None or value.const_value.size > FOLDABLE_ELEMENTS:
            return None
        return value.const_value.numpy(), value.const_value.numpy()

    def _learn(self, value: ir.Value, known: ValueFacts) -> None:
        self._facts[value] = known
        if known.dtype is not None:
            value.dtype = known.dtype
        if known.shapes is None and value.is_graph_output() and value.shape is not None:
            value.shape = ir.Shape([size if isinstance(size, int) else OPEN for size in value.shape])
        else:
            value.shape = known.symbolic()

    def visit(self, node: ir.Node) -> None:
        """Rewrite `node` if it contains the traced batch, then learn its outputs."""
        outer = REWRITES[node.op_type](self, node) if node.op_type in REWRITES else None
        if node.graph is None:
            return
        inputs = [None if value is None else self.of(value) for value in node.inputs]
        outputs = self._infer(node, inputs, outer)
        if not self._compute(node, inputs, outputs):
            for value, known in zip(node.outputs, outputs, strict=True):
                self._refuse_odd(node, known)
                if known.shapes is None and value.name and all(k is None or k.shapes is not None for k in inputs):
                    self.unknown.append(node)
                self._learn(value, known)

    def visit_producer(self, value: ir.Value) -> None:
        """Visit the node that produces `value` and that a rewrite inserted."""
        node = value.producer()
        assert node is not None
        self.visit(node)

    def _compute(self, node: ir.Node, inputs: list[ValueFacts | None], outputs: list[ValueFacts]) -> bool:
        """Learn the contents of the outputs where shapes and constants decide them; return False elsewhere."""
        if node.op_type == "Shape" and inputs[0] is not None and inputs[0].shapes is not None:
            start, end = integer(node, "start") or 0, integer(node, "end")
            sizes = [[np.array(shape[start:end], np.int64)] for shape in inputs[0].shapes]
        else:
            contents = [self.contents(value) for value in node.inputs if value is not None]
            if None in contents or _outgrows(node, outputs):
                return False
            sizes = [_evaluate(node, [pair[case] for pair in contents if pair], self.opset) for case in range(2)]
        if not (sizes[0] and sizes[1]):
            return False
        is_sized = node.op_type == "Shape" or any(value in self._sized for value in node.inputs if value is not None)
        self._sized.update(node.outputs if is_sized else ())
        for value, first, second in zip(node.outputs, *sizes, strict=False):
            self._learn(
                value, ValueFacts(ir.DataType.from_numpy(first.dtype), (first.shape, second.shape), (first, second))
            )
        if all(np.array_equal(*pair) for pair in zip(*sizes, strict=True)):
            self._fold(node, sizes[0])
        return True

    def _fold(self, node: ir.Node, contents: list[np.ndarray]) -> None:
        """Replace a node whose outputs are the same for every batch by initializers of the same names."""
        source = sum(v.const_value.nbytes for v in node.inputs if v is not None and v.const_value is not None)
        if sum(array.nbytes for array in contents) > GROWTH_BYTES + source or any(
            v.is_graph_output() for v in node.outputs
        ):
            return
        is_sized = node.outputs[0] in self._sized
        computed = [v for v in node.inputs if v is not None and v in self._sized and v.const_value is None]
        if self._open and is_sized and (node.op_type in INFLATING or (computed and node.op_type != "Shape")):
            return
        for old, array in zip(node.outputs, contents, strict=False):
            name, old.name = old.name, None
            value = initializer(self.graph, str(name), array)
            self._sized.update([value] if is_sized else ())
            old.replace_all_uses_with(value)
        self.graph.remove(node, safe=True)

    def _infer(self, node: ir.Node, inputs: list[ValueFacts | None], outer: int | None) -> list[ValueFacts]:
        cases = [self._infer_once(node, inputs, case) for case in range(2)]
        outer = outer or max(
            [known.outer for known in inputs if known is not None and known.axis is not None], default=1
        )
        results = []
        for (dtype, first), (_, second) in zip(*cases, strict=True):
            shapes = None if first is None or second is None else (first, second)
            results.append(ValueFacts(dtype, shapes, outer=outer))
        return results

    def _infer_once(
        self, node: ir.Node, inputs: list[ValueFacts | None], case: int
    ) -> list[tuple[ir.DataType | None, tuple[int, ...] | None]]:
        if node.op_type in LIKE_INPUT and inputs[0] is not None:
            return [(inputs[0].dtype, inputs[0].shapes[case] if inputs[0].shapes else None)]
        types, data = {}, {}
        for value, known in zip(node.inputs, inputs, strict=True):
            if value is None or known is None:
                continue
            shape = None if known.shapes is None else known.shapes[case]
            types[str(value.name)] = onnx.helper.make_tensor_type_proto(int(known.dtype or 0), shape)
            if known.data is not None:
                data[str(value.name)] = onnx.numpy_helper.from_array(known.data[case], str(value.name))
        try:
            proto, opsets = ir.to_proto(node), [onnx.helper.make_opsetid("", self.opset)]
            if node.domain:
                proto.op_type, proto.domain = KEPT[node.domain, node.op_type], ""
                del proto.input[3:]  # the others hold scales of 8-bit weights, and decide no shape
                types |= {str(name): types[proto.input[0]] for name in proto.input[1:]}
            schema = onnx.defs.get_schema(proto.op_type, self.opset, "")
            types_out = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=opsets, ir_version=10
            )
        except Exception as error:
            raise self.refusal(node, str(error).strip().splitlines()[-1]) from error
        return [_typed(types_out.get(str(value.name))) for value in node.outputs]

    def _refuse_odd(self, node: ir.Node, known: ValueFacts) -> None:
        one, other = known.shapes or ((), ())
        grown = [(a, b) for a, b in zip(one, other, strict=False) if a != b]
        if len(one) != len(other) or any(a % IMAGINED[0] or a // IMAGINED[0] * IMAGINED[1] != b for a, b in grown):
            raise self.refusal(node, "its output does not grow in proportion to the batch")

    def refusal(self, node: ir.Node, reason: str) -> UnsupportedError:
        """Return the error that `node` fixes the batch."""
        return fixed_batch(node_place(node), reason, self.traced)

    def constant(self, node: ir.Node, position: int, array: np.ndarray) -> None:
        """Let `node` read `array` at `position`."""
        if position >= len(node.inputs):
            node.resize_inputs(position + 1)
        node.replace_input_with(position, self.op.constant(array))
        self.note(node)

    def note(self, node: ir.Node) -> None:
        """Remember that `node` was rewritten."""
        if str(node.name) not in self.rewritten:
            self.rewritten.append(str(node.name))

    def batched(self, node: ir.Node, position: int = 0) -> ValueFacts | None:
        """Return the facts about the input at `position` if it grows with the batch."""
        value = node.inputs[position] if position < len(node.inputs) else None
        known = None if value is None else self.of(value)
        return known if known is not None and known.axis is not None else None

    def fixed_data(self, node: ir.Node, position: int) -> np.ndarray | None:
        """Return the contents of the input at `position` if they are the same for every batch."""
        value = node.inputs[position] if position < len(node.inputs) else None
        data = self.contents(value)
        return data[0] if data is not None and np.array_equal(*data) else None


def _sample_axis(model: ir.Model, x: ir.Value) -> int | None:
    """The axis of size N of the input; the first axis of the first input, if it is a number."""
    assert x.shape is not None
    symbols = [axis for axis, size in enumerate(x.shape) if not isinstance(size, int)]
    return symbols[0] if symbols else (0 if x is model.graph.inputs[0] else None)


def is_fixed(error: UnsupportedError) -> bool:
    """Whether the error says that a node fixes the batch."""
    return error.problem.startswith(FIXED)


def fixed_batch(culprit: str, reason: str, traced: int | None) -> UnsupportedError:
    """Return the error that `culprit` fixes the batch."""
    how = f"exported with batch {traced}" if traced else "exported with a free batch, but traced with numbers"
    return UnsupportedError(f"the batch is fixed: the file was {how}", where=f"{culprit}: {reason}", hint=HINT)


def _outgrows(node: ir.Node, outputs: list[ValueFacts]) -> bool:
    """Return whether the outputs are, or may be, too large to compute, or cannot be computed at all."""
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return True
    sizes = [int(np.prod(shape, dtype=np.int64)) for known in outputs for shape in known.shapes or ()]
    unknown = any(known.shapes is None for known in outputs)
    return max(sizes, default=0) > FOLDABLE_ELEMENTS or (unknown and node.op_type in INFLATING)


def _evaluate(node: ir.Node, data: Sequence[np.ndarray], opset: int) -> list[np.ndarray]:
    """Return the outputs of `node`, or an empty list where onnx's evaluator fails."""
    from onnx.reference import ReferenceEvaluator

    names = [str(value.name) for value in node.inputs if value is not None]
    try:
        results = ReferenceEvaluator(ir.to_proto(node), opsets={"": opset}).run(
            None, dict(zip(names, data, strict=True))
        )
    except Exception:
        return []
    if not isinstance(results, list | tuple) or not all(isinstance(r, np.ndarray | np.generic) for r in results):
        return []
    return [np.asarray(result) for result in results] if all(np.size(r) <= FOLDABLE_ELEMENTS for r in results) else []


def _typed(proto: onnx.TypeProto | None) -> tuple[ir.DataType | None, tuple[int, ...] | None]:
    if proto is None or not proto.HasField("tensor_type"):
        return None, None
    tensor = proto.tensor_type
    known = tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)
    return ir.DataType(tensor.elem_type), tuple(d.dim_value for d in tensor.shape.dim) if known else None


def integer(node: ir.Node, key: str) -> int | None:
    """Return the attribute `key`, None if the node does not state it."""
    return node.attributes[key].as_int() if key in node.attributes else None
