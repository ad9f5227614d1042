"""Free the sizes of a graph: compare the graphs of several sizes, and compute from shapes what differs in them.

The rooms before know every size as a number.  So the same model is taken through them at several sizes.  The graphs
have the same nodes, and some constants differ: targets of Reshapes, counts of positions.  Each such constant becomes a
formula of the shapes at hand.  The sizes are chosen so that no two axes look alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.places import node_place
from ttac.passes.graph.rewire import node_after
from ttac.passes.lower.size_formulas import Dimension, Product, float_formula, products, whole_formula

ROOM = "sizes"
HINT = "state the size that the device uses: `--shape` in place of `--max-shape`"
MOST_RUNS = 1024
"""Most parts of a list of floats that each get a formula: one for each norm of a deep network."""
LARGEST_LIST = 64
"""Elements of an integer constant up to which each element gets a formula."""
Arrays = Sequence[np.ndarray]
Dims = tuple[int | str | None, ...]


def free_sizes(models: Sequence[ir.Model]) -> tuple[ir.Model, dict[str, tuple[int, ...]]]:
    """Return a copy of the first of `models` that computes the same as each of them at its size.

    Also return the open axes of its values by name.  The shapes in the copy are those of the first model, until
    `forget_sizes`.

    Raises UnsupportedError at the first node that the size binds.
    """
    work = models[0].clone()
    return work, _SizeWalk(model=work, others=models[1:]).walk()


def forget_sizes(model: ir.Model, axes: Mapping[str, tuple[int, ...]], names: Mapping[str, Mapping[int, str]]) -> None:
    """Write the open axes of all values as unknown, in place; `names` has name -> axis -> symbol of user inputs."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        found = axes.get(str(value.name), ())
        if value.shape is None or not found:
            continue
        symbols = names.get(str(value.name), {}) if value.is_graph_input() else {}
        sizes = [symbols.get(axis) if axis in found else size for axis, size in enumerate(value.shape)]
        value.shape = ir.Shape(sizes)


def bound_by_size(node: ir.Node, reason: str) -> UnsupportedError:
    """Return the error that `node` binds the size of the input."""
    return UnsupportedError("the size of the input cannot stay open", where=f"{node_place(node)}: {reason}", hint=HINT)


@dataclass(kw_only=True)
class _SizeWalk:
    """State of one walk through graphs of the same nodes."""

    model: ir.Model
    others: Sequence[ir.Model]
    axes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    known: dict[tuple[int, ...], Dimension] = field(default_factory=dict)
    dimensions: dict[ir.Value, list[Dimension]] = field(default_factory=dict)
    made: dict[tuple[ir.Value, int], ir.Value] = field(default_factory=dict)
    replaced: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)

    def walk(self) -> dict[str, tuple[int, ...]]:
        """Replace the constants that differ; return the open axes by value."""
        graph = self.model.graph
        self.op = Builder(graph, ROOM, self.model.opset_imports[""])
        nodes, others = list(graph), [list(model.graph) for model in self.others]
        by_name = [{value.name: value for value in model.graph.inputs} for model in self.others]
        for value in graph.inputs:
            self._learn(value, [each.get(value.name) for each in by_name])
        for position, node in enumerate(nodes):
            twins = [each[position] if position < len(each) else None for each in others]
            self._visit(node, twins)
        if any(len(each) != len(nodes) for each in others):
            raise bound_by_size(nodes[-1], "other sizes need other nodes")
        return self.axes

    def _visit(self, node: ir.Node, twins: Sequence[ir.Node | None]) -> None:
        alike = [twin for twin in twins if twin is not None and _is_twin(node, twin)]
        if len(alike) < len(twins):
            raise bound_by_size(node, "other sizes need other nodes")
        for name, attribute in node.attributes.items():
            if any(not _same(attribute, twin.attributes[name]) for twin in alike):
                raise bound_by_size(node, f"its attribute `{name}` depends on the size")
        for place, value in enumerate(node.inputs):
            if value is None or value.const_value is None:
                continue
            tensors = [value.const_value, *(_constant(twin, place) for twin in alike)]
            if any(tensor is not tensors[0] for tensor in tensors[1:]):
                arrays = [tensor.numpy() for tensor in tensors]
                if not all(_equal(arrays[0], array) for array in arrays[1:]):
                    node.replace_input_with(place, self._formula(node, arrays))
        for place, value in enumerate(node.outputs):
            self._learn(value, [twin.outputs[place] for twin in alike])

    def _learn(self, value: ir.Value, twins: Sequence[ir.Value | None]) -> None:
        """Note the open axes of `value`, and its dimensions for formulas."""
        shapes = [_dims(each) for each in (value, *twins)]
        if any(shape is None or len(shape) != len(shapes[0] or ()) for shape in shapes):
            return
        sizes = list(zip(*(shape for shape in shapes if shape is not None), strict=True))
        found = tuple(axis for axis, each in enumerate(sizes) if len(set(each)) > 1)
        if found:
            self.axes[str(value.name)] = found
        for axis in found:
            each = sizes[axis]
            if all(isinstance(size, int) for size in each):
                numbers = tuple(int(str(size)) for size in each)
                self.known[numbers] = Dimension(value, axis, numbers)
                self.dimensions.setdefault(value, []).append(self.known[numbers])

    def _candidates(self, node: ir.Node) -> list[Product]:
        """Products of dimensions for the formulas of `node`: those of its own inputs first, then the latest."""
        near = [each for value in node.inputs if value is not None for each in self.dimensions.get(value, ())]
        seen = {each.sizes for each in near}
        return list(products(near, [each for each in reversed(self.known.values()) if each.sizes not in seen]))

    def _formula(self, node: ir.Node, arrays: Arrays) -> ir.Value:
        """The constant of `node` with the contents `arrays`, one for each size, as computed from shapes."""
        key = tuple((array.dtype.str, array.shape, array.tobytes()) for array in arrays)
        if key not in self.replaced:
            with self.op.at(ROOM, before=node):
                self.replaced[key] = self._computed(node, arrays)
        return self.replaced[key]

    def _computed(self, node: ir.Node, arrays: Arrays) -> ir.Value:
        first = arrays[0]
        ranks = {array.ndim for array in arrays}
        if len({array.shape for array in arrays}) == 1 and first.dtype.kind in "iu" and first.size <= LARGEST_LIST:
            return self._list(node, arrays)
        filled = all(array.size and (array == array.flat[0]).all() for array in arrays)
        if filled and len(ranks) == 1:
            return self._filled(node, arrays)
        grids = [_grid(array) for array in arrays] if first.dtype.kind in "iu" and len(ranks) == 1 else []
        if grids and all(grid is not None for grid in grids):
            return self._ramp(node, arrays, [grid for grid in grids if grid is not None])
        if len({array.shape for array in arrays}) == 1 and first.ndim == 1 and len(_runs(arrays)) <= MOST_RUNS:
            parts = [self._filled(node, [array[run] for array in arrays]) for run in _runs(arrays)]
            return self.op.Concat(*parts, axis=0)
        raise bound_by_size(node, f"it reads a table of {list(first.shape)} made for one size")

    def _list(self, node: ir.Node, arrays: Arrays) -> ir.Value:
        """Integers, each a number or a formula."""
        flat = [array.reshape(-1) for array in arrays]
        parts: list[ir.Value | list[int]] = []
        for place in range(arrays[0].size):
            numbers = [int(array[place]) for array in flat]
            if len(set(numbers)) > 1:
                parts.append(self._number(node, numbers))
            elif parts and isinstance(parts[-1], list):
                parts[-1].append(numbers[0])
            else:
                parts.append([numbers[0]])
        op = self.op
        joined = op.Concat(*parts, axis=0) if len(parts) > 1 else parts[0]
        assert isinstance(joined, ir.Value)
        shaped = joined if arrays[0].ndim == 1 else op.Reshape(joined, list(arrays[0].shape))
        dtype = ir.DataType.from_numpy(arrays[0].dtype)
        return shaped if dtype == ir.DataType.INT64 else op.Cast(shaped, to=int(dtype))

    def _ramp(self, node: ir.Node, arrays: Arrays, grids: Sequence[tuple[int, list[int]]]) -> ir.Value:
        """Integers that grow by equal steps along each axis: start + sum of step * position."""
        op, rank = self.op, arrays[0].ndim
        total = self._number(node, [start for start, _ in grids])
        for axis in range(rank):
            if all(array.shape[axis] == 1 for array in arrays):
                continue
            count = op.Squeeze(self._number(node, [array.shape[axis] for array in arrays]), [0])
            places = op.Range(np.array(0), count, np.array(1))
            moved = op.Mul(places, self._number(node, [steps[axis] for _, steps in grids]))
            total = op.Add(total, op.Reshape(moved, [-1 if other == axis else 1 for other in range(rank)]))
        dtype = ir.DataType.from_numpy(arrays[0].dtype)
        return total if dtype == ir.DataType.INT64 else op.Cast(total, to=int(dtype))

    def _filled(self, node: ir.Node, arrays: Arrays) -> ir.Value:
        """A tensor with one value everywhere; value and shape may depend on the size."""
        op, dtype = self.op, ir.DataType.from_numpy(arrays[0].dtype)
        values = [array.reshape(-1)[0].item() for array in arrays]
        if len(set(values)) == 1:
            value: ir.Value | np.ndarray = np.array([values[0]], arrays[0].dtype)
            if len({array.shape for array in arrays}) == 1:
                return op.constant(arrays[0])
        elif arrays[0].dtype.kind in "iu":
            value = op.Cast(self._number(node, values), to=int(dtype))
        else:
            formula = float_formula(values, self._candidates(node))
            if formula is None:
                raise bound_by_size(node, f"it reads the number {values[0]:.6g}, of unknown dependence on the size")
            value = formula.build(op, self._size, dtype)
        if len({array.shape for array in arrays}) == 1:
            return (op.Reshape if arrays[0].size == 1 else op.Expand)(value, list(arrays[0].shape))
        return op.Expand(value, self._list(node, [np.array(array.shape, np.int64) for array in arrays]))

    def _number(self, node: ir.Node, numbers: Sequence[int]) -> ir.Value:
        """A whole number that differs with the size, int64 [1]."""
        if len(set(numbers)) == 1:
            return self.op.constant(np.array(numbers[:1], np.int64))
        formula = whole_formula(numbers, self._candidates(node))
        if formula is None:
            raise bound_by_size(node, f"it reads the number {numbers[0]}, of unknown dependence on the size")
        return formula.build(self.op, self._size)

    def _size(self, dimension: Dimension) -> ir.Value:
        """The size of a dimension, int64 [1], read right behind the node that makes the value."""
        value, axis = dimension.value, dimension.axis
        if (value, axis) not in self.made:
            maker = value.producer()
            graph = self.model.graph
            before = next(iter(graph)) if maker is None else node_after(graph, maker)
            with self.op.at(ROOM, before=before):
                self.made[value, axis] = self.op.Shape(value, start=axis, end=axis + 1, name=f"{value.name}.size{axis}")
        return self.made[value, axis]


def _is_twin(node: ir.Node, twin: ir.Node) -> bool:
    counts = len(node.inputs) == len(twin.inputs) and len(node.outputs) == len(twin.outputs)
    constant = [v is not None and v.const_value is not None for v in node.inputs]
    same = [v is not None and v.const_value is not None for v in twin.inputs] == constant
    return counts and same and node.op_type == twin.op_type and set(node.attributes) == set(twin.attributes)


def _same(first: ir.Attr, second: ir.Attr) -> bool:
    if first.type == ir.AttributeType.TENSOR:
        return _equal(first.as_tensor().numpy(), second.as_tensor().numpy())
    return bool(first.value == second.value)


def _constant(node: ir.Node, place: int) -> ir.TensorProtocol:
    value = node.inputs[place]
    assert value is not None and value.const_value is not None
    return value.const_value


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def _dims(value: ir.Value | None) -> Dims | None:
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def _runs(arrays: Arrays) -> list[slice]:
    """Parts of a list in which no array changes."""
    changes = np.logical_or.reduce([array[1:] != array[:-1] for array in arrays])
    ends = [0, *(np.flatnonzero(changes) + 1).tolist(), len(arrays[0])]
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def _grid(array: np.ndarray) -> tuple[int, list[int]] | None:
    """First number and step along each axis, of integers that grow by equal steps along each; None for others."""
    if not array.size or not array.ndim:
        return None
    numbers = array.astype(np.int64)
    steps = [int(np.diff(numbers, axis=axis).flat[0]) if size > 1 else 0 for axis, size in enumerate(array.shape)]
    places = np.meshgrid(*(np.arange(size) for size in array.shape), indexing="ij")
    grown = numbers.flat[0] + sum(step * place for step, place in zip(steps, places, strict=True))
    return (int(numbers.flat[0]), steps) if np.array_equal(grown, numbers) else None
