"""Formulas for numbers that depend on the sizes of the input: from their values at several sizes to nodes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder

CLOSE = 3e-7
"""Relative difference up to which a float counts as computed by a formula."""
LARGEST_DENOMINATOR = 1 << 12
"""Largest denominator of a fraction that a factor is taken for."""
DIVISORS = (2, 3, 4, 5, 8, 16, 32, 64)
"""Divisors of a rounded quotient: strides, and elements in a byte or a block."""


@dataclass(frozen=True)
class Dimension:
    """An axis of a value, and its size in each of the compared graphs."""

    value: ir.Value
    axis: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """The product of one or two dimensions."""

    factors: tuple[Dimension, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The product in each of the compared graphs."""
        return tuple(math.prod(sizes) for sizes in zip(*(factor.sizes for factor in self.factors), strict=True))


@dataclass(frozen=True)
class WholeFormula:
    """The whole number floor((factor * product + offset) / divisor)."""

    product: Product
    factor: int = 1
    offset: int = 0
    divisor: int = 1

    def build(self, op: Builder, size_of: Callable[[Dimension], ir.Value]) -> ir.Value:
        """Return the number, int64 [1]."""
        total = product_of(op, self.product, size_of)
        if self.factor != 1:
            total = op.Mul(total, np.array([self.factor]))
        if self.offset:
            total = op.Add(total, np.array([self.offset]))
        return op.Div(total, np.array([self.divisor])) if self.divisor != 1 else total


@dataclass(frozen=True)
class FloatFormula:
    """The float factor * product, or factor / product."""

    product: Product
    factor: float
    inverse: bool

    def build(self, op: Builder, size_of: Callable[[Dimension], ir.Value], dtype: ir.DataType) -> ir.Value:
        """Return the number, `dtype` [1]; computed in float64, so that it is rounded once, as a constant is."""
        product = op.Cast(product_of(op, self.product, size_of), to=int(ir.DataType.DOUBLE))
        factor = np.array([self.factor], np.float64)
        return op.Cast(op.Div(factor, product) if self.inverse else op.Mul(product, factor), to=int(dtype))


def product_of(op: Builder, product: Product, size_of: Callable[[Dimension], ir.Value]) -> ir.Value:
    """Return the product of the dimensions, int64 [1]."""
    first, *others = (size_of(factor) for factor in product.factors)
    for other in others:
        first = op.Mul(first, other)
    return first


def products(near: Sequence[Dimension], others: Sequence[Dimension]) -> Iterator[Product]:
    """Yield single dimensions and products of two, those of `near` first."""
    every = [*near, *others]
    yield from (Product((each,)) for each in every)
    yield from (Product(pair) for pair in itertools.combinations(every, 2))
    yield from (Product((each, each)) for each in every)


def whole_formula(numbers: Sequence[int], candidates: Sequence[Product]) -> WholeFormula | None:
    """Return the simplest formula that gives the `numbers`, one for each graph; None if there is none."""
    for product in candidates:
        if product.sizes == tuple(numbers):
            return WholeFormula(product)
    linear = [formula for product in candidates if (formula := _linear(numbers, product)) is not None]
    if linear:
        return min(linear, key=lambda f: (f.offset != 0, f.divisor != 1, len(f.product.factors), abs(f.factor)))
    return next(_rounded(numbers, candidates), None)


def _linear(numbers: Sequence[int], product: Product) -> WholeFormula | None:
    sizes = product.sizes
    ends = [(a, b) for a, b in zip(sizes, numbers, strict=True) if a != sizes[0]]
    if not ends:
        return None
    slope = Fraction(ends[0][1] - numbers[0], ends[0][0] - sizes[0])
    shift = numbers[0] - slope * sizes[0]
    offset = shift * slope.denominator
    if not slope or offset.denominator != 1:
        return None
    if any(slope * size + shift != number for size, number in zip(sizes, numbers, strict=True)):
        return None
    return WholeFormula(product, slope.numerator, int(offset), slope.denominator)


def _rounded(numbers: Sequence[int], candidates: Iterable[Product]) -> Iterator[WholeFormula]:
    for product, divisor in itertools.product(candidates, DIVISORS):
        for offset in (0, divisor - 1):
            if all((size + offset) // divisor == n for size, n in zip(product.sizes, numbers, strict=True)):
                yield WholeFormula(product, 1, offset, divisor)


def float_formula(numbers: Sequence[float], candidates: Sequence[Product]) -> FloatFormula | None:
    """Return the formula that gives the `numbers` to float precision; None if there is none."""
    values = np.asarray(numbers, np.float64)
    found = []
    for product in candidates:
        sizes = np.asarray(product.sizes, np.float64)
        for inverse, factors in ((False, values / sizes), (True, values * sizes)):
            if np.ptp(factors) <= CLOSE * abs(factors[0]):
                found.append(FloatFormula(product, _simple(float(factors[0])), inverse))
    return min(found, key=_complexity, default=None)


def _complexity(formula: FloatFormula) -> tuple[int, int]:
    fraction = Fraction(formula.factor).limit_denominator(LARGEST_DENOMINATOR)
    exact = abs(float(fraction) - formula.factor) <= CLOSE * abs(formula.factor)
    size = abs(fraction.numerator) + fraction.denominator if exact else 2 * LARGEST_DENOMINATOR
    return size, len(formula.product.factors)


def _simple(factor: float) -> float:
    """The fraction of small numbers that `factor` is close to, else `factor`."""
    near = float(Fraction(factor).limit_denominator(LARGEST_DENOMINATOR))
    return near if near and abs(near - factor) <= CLOSE * abs(factor) else factor
