"""The two layouts of one graph: which values are blocked, and the nodes that go from one layout to the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.graph_files import is_outside
from ttac.passes.graph.shapes import dims, known_dims
from ttac.runtime.graph_check import KERNEL_DOMAIN
from ttac.runtime.reorder import reordered

DOMAIN = "com.microsoft.nchwc"
"""onnxruntime's internal operators; the engine's CPU build registers them where it has kernels for them."""
ROOM = "blocked"


class LayoutBuilder(Builder):
    """A builder that also makes the engine's internal operators."""

    def internal(
        self, op_type: str, inputs: Sequence[ir.Value | None], shape: Sequence[int | str], **attributes: Any
    ) -> ir.Value:
        """Insert one node of `DOMAIN`; its output is float32 of `shape`."""
        node = ir.node(op_type, list(inputs), attributes, domain=DOMAIN)
        value = node.outputs[0]
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(list(shape))
        self.place(node, f"{op_type.lower()}.nchwc")
        return value

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Value:
        """Insert `node` once more, on other `inputs`; its output has the type and shape of the first one."""
        made = ir.node(node.op_type, list(inputs), dict(node.attributes), domain=node.domain)
        value, old = made.outputs[0], node.outputs[0]
        value.type, value.shape = old.type, old.shape
        self.place(made, node.op_type.lower())
        return value


@dataclass(frozen=True)
class Recipe:
    """How a weight of a blocked graph is made of a stored one, in this order.

    Attributes:
        value: the constant or fed weight of the plain graph.
        taps: for each spatial axis, the taps that are kept, in their new order; empty for all of them.
        groups: number of groups in which in- and outputs are exchanged; 0 for no exchange.
        order: "OIHWBiBo" blocks in- and outputs, "OIHWBo" outputs only.
    """

    value: ir.Value
    order: str
    taps: tuple[tuple[int, ...], ...] = ()
    groups: int = 0


Phases = list[list["ir.Value | None"]]
"""The even and odd rows, and of each the even and odd columns, of a map; None for zeros."""


@dataclass(kw_only=True)
class Layouts:
    """The state of one rewriting.

    Attributes:
        fed_weights: names of the graph inputs that are constant weights.
        kernels: whether the graphs use the operator library.
        of: plain value -> its blocked form, as far as that exists.
        only: values that exist in blocked form only, because their nodes were replaced.
        recipes: graph input -> how the runtime makes it.
        phases: plain value -> the blocked phases that its blocked form was put together of.
    """

    op: LayoutBuilder
    block: int
    fed_weights: frozenset[str]
    kernels: bool = False
    of: dict[ir.Value, ir.Value] = field(default_factory=dict)
    only: set[ir.Value] = field(default_factory=set)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    inputs: dict[str, ir.Value] = field(default_factory=dict)
    phases: dict[ir.Value, Phases] = field(default_factory=dict)
    _plain: dict[ir.Value, ir.Value] = field(default_factory=dict)
    _reordered: dict[str, ir.Value] = field(default_factory=dict)

    def fits(self, value: ir.Value | None) -> bool:
        """Whether `value` is [N, C, H, W] with known sizes of a sample, and channels that fill their blocks well."""
        sizes = known_dims(value)[1:]
        return len(sizes) == 3 and all(isinstance(size, int) for size in sizes) and self.fills(int(sizes[0]))

    def fills(self, channels: int) -> bool:
        """Whether blocks of so many channels hold at most a quarter of padding; the engine wants a multiple of four."""
        return channels % self.block == 0 or (channels % 4 == 0 and 4 * channels >= 3 * self.filled(channels))

    def filled(self, channels: int) -> int:
        """Channels of whole blocks; the last ones are padding."""
        return channels + -channels % self.block

    def shape(self, shape: Sequence[int | str]) -> list[int | str]:
        """The shape [N, C, H, W] with whole blocks."""
        return [shape[0], self.filled(int(shape[1])), *shape[2:]]

    def padded(self, value: ir.Value) -> bool:
        """Whether the blocked form of `value` has channels that `value` lacks."""
        return int(dims(value)[1]) % self.block != 0

    def vector(self, value: ir.Value, axis: int = 0) -> ir.Value:
        """`value` with zeros for the channels that only the blocked form has."""
        channels, rank = int(dims(value)[axis]), len(dims(value))
        if not (missing := -channels % self.block):
            return value
        ends = [missing if each == axis else 0 for each in range(rank)]
        made = self.op.Pad(value, [*[0] * rank, *ends])
        made.shape = ir.Shape(
            [self.filled(channels) if each == axis else size for each, size in enumerate(dims(value))]
        )
        return made

    def cut(self, value: ir.Value, channels: int, axis: int = 0) -> ir.Value:
        """`value` without the channels that only the blocked form has."""
        if not -channels % self.block:
            return value
        made = self.op.Slice(value, [0], [channels], [axis])
        made.shape = ir.Shape([channels if each == axis else size for each, size in enumerate(dims(value))])
        return made

    def has(self, value: ir.Value | None) -> bool:
        """Whether the blocked form of `value` is there already."""
        return value in self.of

    def can(self, value: ir.Value | None) -> bool:
        """Whether the blocked form of `value` is there or can be made."""
        return value in self.of or (self.fits(value) and value is not None and value.dtype == ir.DataType.FLOAT)

    def blocked(self, value: ir.Value | None) -> ir.Value:
        """The blocked form of `value`, reordered if need be."""
        assert value is not None
        if value not in self.of:
            self.of[value] = (
                value if self._is_either(value) else self.op.internal("ReorderInput", [value], self.shape(dims(value)))
            )
        return self.of[value]

    def plain(self, value: ir.Value) -> ir.Value:
        """The plain form of `value`, reordered if need be."""
        if value not in self.only:
            return value
        if self._is_either(value):
            return self.of[value]
        if value not in self._plain:
            self._plain[value] = self._reordered_output(self.of[value], dims(value))
        return self._plain[value]

    def _is_either(self, value: ir.Value) -> bool:
        """Whether maps of one pixel in whole blocks have the same bytes in either layout."""
        return dims(value)[2:] == [1, 1] and not self.padded(value)

    def _reordered_output(self, blocked: ir.Value, shape: Sequence[int | str]) -> ir.Value:
        """The engine reorders float32 only, so other types are cast before and after."""
        op, dtype, channels = self.op, blocked.dtype, int(shape[1])
        assert dtype is not None
        if dtype == ir.DataType.FLOAT:
            return op.internal("ReorderOutput", [blocked], shape, channels=channels)
        single = op.Cast(blocked, to=int(ir.DataType.FLOAT))
        return op.Cast(op.internal("ReorderOutput", [single], shape, channels=channels), to=int(dtype))

    def replace(self, value: ir.Value, blocked: ir.Value) -> None:
        """Let `blocked` be the only form of `value` from here on."""
        blocked.shape, blocked.type = ir.Shape(self.shape(dims(value))), value.type
        blocked.metadata_props.update(value.metadata_props)
        blocked.meta.update(value.meta)
        self.of[value] = blocked
        self.only.add(value)

    def weight(self, recipe: Recipe, shape: Sequence[int]) -> ir.Value:
        """The graph input that holds the weight made by `recipe`, of the plain `shape`; a small one is a constant.

        A weight that trains is reordered by a node of the library, in each step.
        """
        outputs, inputs, *kernel = shape
        shape = [self.filled(outputs), self.filled(inputs) if recipe.order == "OIHWBiBo" else inputs, *kernel]
        name, held = _named(recipe), recipe.value.const_value
        if not self.is_weight(recipe.value):
            return self._reordered_weight(recipe, name, shape)
        if held is not None and not is_outside(held):
            array = reordered(held.numpy(), self.block, recipe.order, recipe.taps, recipe.groups)
            return self.op.constant(array)
        if name not in self.inputs:
            self.inputs[name] = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(list(shape)))
            self.recipes[name] = recipe
        return self.inputs[name]

    def _reordered_weight(self, recipe: Recipe, name: str, shape: Sequence[int]) -> ir.Value:
        if name not in self._reordered:
            attributes: dict[str, int | list[int]] = {"groups": recipe.groups}
            if recipe.taps:
                attributes |= {axis: list(kept) for axis, kept in zip(("rows", "columns"), recipe.taps, strict=True)}
            blocks = {"block": self.block, "inputs_in_blocks": int(recipe.order == "OIHWBiBo")}
            node = ir.node("ReorderWeights", [recipe.value], {**blocks, **attributes}, domain=KERNEL_DOMAIN)
            node.outputs[0].type, node.outputs[0].shape = recipe.value.type, ir.Shape(list(shape))
            self.op.place(node, "reorderweights")
            self._reordered[name] = node.outputs[0]
        return self._reordered[name]

    def is_weight(self, value: ir.Value | None) -> bool:
        """Whether `value` never changes, and so can be reordered once."""
        return value is not None and (value.const_value is not None or str(value.name) in self.fed_weights)

    def takes(self, value: ir.Value | None) -> bool:
        """Whether `value` is a kernel [O, I, h, w] that never changes, or one that the library can reorder."""
        sizes = known_dims(value)
        if value is None or len(sizes) != 4 or not all(isinstance(size, int) for size in sizes):
            return False
        return self.is_weight(value) or (self.kernels and value not in self.of and value.dtype == ir.DataType.FLOAT)


def _named(recipe: Recipe) -> str:
    taps = "x".join("".join(map(str, kept)) for kept in recipe.taps)
    parts = [str(recipe.value.name), taps and f"taps{taps}", recipe.groups and f"swap{recipe.groups}", recipe.order]
    return ":".join(str(part) for part in parts if part)


def constant_ints(value: ir.Value | None) -> list[int] | None:
    """The integers of a constant; None where `value` is no constant."""
    if value is None or value.const_value is None:
        return None
    return [int(number) for number in value.const_value.numpy().reshape(-1)]


def attributes_of(node: ir.Node, *names: str) -> Mapping[str, Any]:
    """The named attributes that the node has, as Python values."""
    return {name: node.attributes[name].value for name in names if name in node.attributes}
