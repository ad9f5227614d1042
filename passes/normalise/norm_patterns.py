"""Recognise norms that exporters spell in single operators, or say why a near match is no norm.

Nothing changes here; `fuse_norms` rewrites the norms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.match import array_of, made_by, only_reader, with_constant


@dataclass(frozen=True, eq=False, kw_only=True)
class Standardisation:
    """y = (x - mean)/sqrt(variance + eps) over `axes`, or y = x/sqrt(mean of x^2 + eps) where not `centred`.

    TensorFlow multiplies scale and bias in before the graph has y. Then y includes them, as constants in the file's
    shapes.
    """

    x: ir.Value
    y: ir.Value
    axes: tuple[int, ...]
    eps: float
    centred: bool
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None

    @property
    def holds_affine(self) -> bool:
        """Whether the nodes compute scale or bias too."""
        return self.scale is not None or self.bias is not None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the axes; empty if one is unknown."""
        sizes = [(self.x.shape or ())[axis] for axis in self.axes]
        return tuple(size for size in sizes if isinstance(size, int)) if all(isinstance(s, int) for s in sizes) else ()

    @property
    def trailing(self) -> bool:
        """Whether the axes are the last ones, without a gap."""
        rank = len(self.x.shape or ())
        return self.axes == tuple(range(rank - len(self.axes), rank))


@dataclass(frozen=True, eq=False)
class Affine:
    """y = x*scale + bias with constants in the file's shapes; an absent constant is None."""

    y: ir.Value
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None


def standardisation(node: ir.Node) -> Standardisation | str | None:
    """Return the standardisation that `node` completes.

    None without a similar pattern, else the reason why it is no norm.
    """
    if node.op_type in ("Add", "Sub"):
        return _moved(node)
    for top, inverse, scale in _quotient(node):
        root = _root(inverse)
        if root is not None:
            match = _over_deviation(node, top, root)
            return replace(match, scale=scale) if isinstance(match, Standardisation) else match
    return None


def affine_after(value: ir.Value) -> Affine:
    """Return the constant scale and bias that `value`, and nothing else, passes through next."""
    scale = bias = None
    product = only_reader(value, "Mul")
    parts = with_constant(product)
    if product is not None and parts is not None and product.outputs[0].shape == value.shape:
        value, scale = product.outputs[0], parts[1]
    total = only_reader(value, "Add")
    parts = with_constant(total)
    if total is not None and parts is not None and total.outputs[0].shape == value.shape:
        value, bias = total.outputs[0], parts[1]
    return Affine(value, scale, bias)


Quotients = list[tuple[ir.Value, ir.Value, "np.ndarray | None"]]


def _quotient(node: ir.Node) -> Quotients:
    """Return triples (x, d, scale) such that the node computes x/d, or x times scale/d with a constant."""
    first, second = node.inputs if len(node.inputs) == 2 else (None, None)
    if first is None or second is None:
        return []
    if node.op_type == "Div":
        return [(first, second, None)] if first.const_value is None else []
    if node.op_type != "Mul":
        return []
    pairs: Quotients = []
    for x, r in ((first, second), (second, first)):
        inverse, scale = _scaled_inverse(r)
        pairs += [(x, inverse, scale)] if inverse is not None else []
    return pairs


def _scaled_inverse(value: ir.Value) -> tuple[ir.Value | None, np.ndarray | None]:
    """Return d and scale where `value` is scale/d; d is None elsewhere, and scale is None for 1/d."""
    scaled = with_constant(made_by(value, "Mul"))
    return (inverted(value), None) if scaled is None else (inverted(scaled[0]), scaled[1])


def inverted(value: ir.Value) -> ir.Value | None:
    """Return d where `value` is 1/d."""
    node = made_by(value, "Reciprocal", "Div")
    if node is None:
        return None
    if node.op_type == "Reciprocal":
        return node.inputs[0]
    one = array_of(node.inputs[0])
    return node.inputs[1] if one is not None and one.size == 1 and float(one.reshape(-1)[0]) == 1 else None


def _root(value: ir.Value) -> ir.Node | None:
    """Return the Add of variance and epsilon under the Sqrt, or power of one half, that produces `value`."""
    node = made_by(value, "Sqrt", "Pow")
    if node is None or (node.op_type == "Pow" and not _is_number(node.inputs[1], 0.5)):
        return None
    total = made_by(node.inputs[0], "Add")
    means = [made_by(value, "ReduceMean", "GlobalAveragePool") for value in total.inputs] if total is not None else []
    mean = next((node for node in means if node is not None), None)
    return total if mean is not None and _squared(mean.inputs[0]) is not None else None


def _is_number(value: ir.Value | None, number: float) -> bool:
    array = array_of(value)
    return array is not None and array.size == 1 and abs(float(array.reshape(-1)[0]) - number) < 1e-9


def _squared(value: ir.Value | None) -> ir.Value | None:
    """Return v where `value` is v*v."""
    node = made_by(value, "Mul", "Pow")
    if node is None:
        return None
    squares = node.inputs[0] is node.inputs[1] if node.op_type == "Mul" else _is_number(node.inputs[1], 2)
    return node.inputs[0] if squares else None


def _reduction(value: ir.Value | None) -> tuple[ir.Value, tuple[int, ...]] | None:
    """Return operand and axes of a ReduceMean that keeps its axes; None for other nodes or unknown axes.

    tf2onnx writes the mean as a pool where the axes allow it, [N, T, C] over C for instance.
    """
    pool = made_by(value, "GlobalAveragePool")
    if pool is not None and pool.inputs[0] is not None and pool.inputs[0].shape is not None:
        return pool.inputs[0], tuple(range(2, len(pool.inputs[0].shape)))
    node = made_by(value, "ReduceMean")
    if node is None or not node.attributes.get_int("keepdims", 1) or node.inputs[0] is None:
        return None
    x, axes = node.inputs[0], array_of(node.inputs[1] if len(node.inputs) > 1 else None)
    if axes is None or x.shape is None:
        return None
    return x, tuple(sorted(int(axis) % len(x.shape) for axis in axes.reshape(-1)))


def _centred(value: ir.Value) -> tuple[ir.Value, tuple[int, ...]] | None:
    """Return x and axes where `value` is x minus its mean over the axes."""
    node = made_by(value, "Sub")
    mean = _reduction(node.inputs[1]) if node is not None else None
    return mean if node is not None and mean is not None and node.inputs[0] is mean[0] else None


def _variance(total: ir.Node) -> tuple[ir.Value, tuple[int, ...], float] | str:
    """Return squared value, axes of its mean, and epsilon, from an Add of variance and epsilon.

    Or the reason against it.
    """
    parts = with_constant(total)
    if parts is None or parts[1].size != 1:
        return "its epsilon is computed, or not one number"
    mean = _reduction(parts[0])
    value = _squared(mean[0]) if mean is not None else None
    if mean is None or value is None:
        return "the axes of its variance are computed, or not kept"
    return value, mean[1], float(parts[1].reshape(-1)[0])


def _over_deviation(node: ir.Node, top: ir.Value, total: ir.Node) -> Standardisation | str:
    variance = _variance(total)
    if isinstance(variance, str):
        return variance
    value, axes, eps = variance
    y = node.outputs[0]
    below, above = _centred(value), _centred(top)
    if below is not None and above is not None and below[0] is above[0]:
        if below[1] != axes or above[1] != axes:
            return "mean and variance are taken over different axes"
        return Standardisation(x=below[0], y=y, axes=axes, eps=eps, centred=True)
    if top is not value:
        return "its numerator is not the value whose variance it divides by"
    return Standardisation(x=value, y=y, axes=axes, eps=eps, centred=False)


def _moved(node: ir.Node) -> Standardisation | str | None:
    """Match TensorFlow's form, x*r + (bias - mean*r) with r = scale/sqrt(variance + eps), the shift in any spelling."""
    product, rest = node.inputs if len(node.inputs) == 2 else (None, None)
    orders = ((product, rest), (rest, product)) if node.op_type == "Add" else ((product, rest),)
    for outer, inner in orders:
        factors = made_by(outer, "Mul")
        if factors is None or inner is None:
            continue
        for x, r in (factors.inputs, reversed(factors.inputs)):
            shift = _shift(inner, r, negative=node.op_type == "Sub")
            if x is not None and r is not None and shift is not None:
                match = _from_moments(node, x, r, *shift)
                if match is not None:
                    return match
    return None


Shift = tuple[ir.Value, "np.ndarray | str | None"]


def _shift(value: ir.Value, r: ir.Value | None, *, negative: bool = False) -> Shift | None:
    """Return mean and bias of a shift: bias - mean*r, -mean*r + bias, -mean*r; of its opposite where `negative`.

    A text in the place of the bias says that the bias is computed.
    """
    if negative:
        mean = _times(value, r)
        return None if mean is None else (mean, None)
    opposite = _opposite_times(value, r)
    if opposite is not None:
        return opposite, None
    node = made_by(value, "Sub", "Add")
    if node is None or len(node.inputs) != 2:
        return None
    for constant, other in (node.inputs, reversed(node.inputs)):
        mean = _times(other, r) if node.op_type == "Sub" else _opposite_times(other, r)
        if mean is not None:
            array = array_of(constant)
            return mean, array if array is not None else "its shift is computed"
        if node.op_type == "Sub":
            break
    return None


def _times(value: ir.Value | None, r: ir.Value | None) -> ir.Value | None:
    """Return m where `value` is m*r."""
    node = made_by(value, "Mul")
    others = [factor for factor in node.inputs if factor is not r] if node is not None else []
    return others[0] if len(others) == 1 else None


def _opposite_times(value: ir.Value | None, r: ir.Value | None) -> ir.Value | None:
    """Return m where `value` is -m*r, with a Neg before or behind the product."""
    behind = made_by(value, "Neg")
    if behind is not None:
        return _times(behind.inputs[0], r)
    before = made_by(_times(value, r), "Neg")
    return before.inputs[0] if before is not None else None


def _from_moments(
    node: ir.Node, x: ir.Value, r: ir.Value, mean: ir.Value, bias: np.ndarray | str | None
) -> Standardisation | str | None:
    inverse, scale = _scaled_inverse(r)
    total = _root(inverse) if inverse is not None else None
    if total is None:
        return None
    variance = _variance(total)
    if isinstance(variance, str):
        return variance
    value, axes, eps = variance
    below, average = _centred(value), _reduction(mean)
    if below is None or average is None or not (below[0] is average[0] is x) or not (below[1] == average[1] == axes):
        return "mean and variance are not those of its input"
    if isinstance(bias, str):
        return bias
    # Zeros mark a shift without bias: the nodes include the whole affine map, and later code must know it.
    return Standardisation(
        x=x,
        y=node.outputs[0],
        axes=axes,
        eps=eps,
        centred=True,
        scale=scale,
        bias=np.zeros(1, np.float32) if bias is None else bias,
    )
