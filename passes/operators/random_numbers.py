"""Random numbers in a graph: equal on every engine, from a state that is saved and reset like all state.

The generator combines two multiplicative congruential generators (L'Ecuyer, CACM 31(6), 1988); their difference has a
period of 2.3e18.  Every product is below 2^62, and so exact in int64.  From a state s, the j-th number is s*a^j mod m.
A tensor of numbers is thus a product with small constants, without a loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder

COLUMNS = 4096
"""Numbers in a row of a table that `Numbers.many` computes from one constant."""
MODULI, MULTIPLIERS = (2147483563, 2147483399), (40014, 40692)


def seeded(seed: int) -> np.ndarray:
    """The state [2], int64, for the number `seed`."""
    words = np.random.SeedSequence(seed).generate_state(2)
    return np.array([1 + int(word) % (m - 1) for word, m in zip(words, MODULI, strict=True)], np.int64)


@dataclass(frozen=True)
class Numbers:
    """Random numbers from the state `state` [2] of one step; the first number is number 1."""

    op: Builder
    state: ir.Value

    def uniform(self, count: int) -> ir.Value:
        """Numbers 1 to `count`, in (0, 1], as float32 [count]."""
        first, second = self._states()
        return self._joined(*(self._times(s, range(1, count + 1), i) for i, s in enumerate((first, second))))

    def many(self, after: int, count: int) -> ir.Value:
        """The `count` numbers after the first `after`, in (0, 1], as float32 [count]; `after` may be negative."""
        columns = min(count, COLUMNS)
        rows = -(-count // columns)
        parts = []
        for i, state in enumerate(self._states()):
            first = self._times(state, [after + row * columns for row in range(rows)], i, [rows, 1])
            parts.append(self._times(first, range(1, columns + 1), i))
        flat = self.op.Reshape(self._joined(*parts), [-1])
        return self.op.Slice(flat, [0], [count], [0]) if rows * columns > count else flat

    def normal(self, after: int, samples: ir.Value, limit: int, sizes: Sequence[int]) -> ir.Value:
        """Standard normal numbers [n, *sizes] by Box and Muller, from the numbers after the first `after`.

        `samples` [1] is n; `limit` is the most it may be.
        """
        op, half = self.op, -(-sizes[-1] // 2)
        rows = math.prod(sizes[:-1])
        parts = []
        for i, state in enumerate(self._states()):
            numbers = self._times(state, [after + n * rows * 2 * half for n in range(limit)], i)
            numbers = op.Reshape(op.Slice(numbers, [0], samples, [0]), [-1, *[1] * len(sizes)])
            numbers = self._times(numbers, [row * 2 * half for row in range(rows)], i, [*sizes[:-1], 1])
            parts.append(self._times(numbers, range(1, 2 * half + 1), i))
        radius, angle = op.Split(self._joined(*parts), [half, half], axis=-1, outputs=2)
        radius, angle = op.Sqrt(op.Mul(op.Log(radius), -2.0)), op.Mul(angle, 2 * math.pi)
        normals = op.Concat(op.Mul(radius, op.Cos(angle)), op.Mul(radius, op.Sin(angle)), axis=-1)
        return normals if sizes[-1] == 2 * half else op.Slice(normals, [0], [sizes[-1]], [-1])

    def following(self, count: int) -> ir.Value:
        """The state after `count` numbers."""
        powers = [pow(a, count, m) for a, m in zip(MULTIPLIERS, MODULI, strict=True)]
        moved = self.op.Mul(self.state, np.array(powers, np.int64))
        return self.op.Mod(moved, np.array(MODULI, np.int64))

    def _states(self) -> tuple[ir.Value, ir.Value]:
        first, second = self.op.Split(self.state, [1, 1], axis=0, outputs=2)
        return first, second

    def _times(self, value: ir.Value, exponents: Sequence[int], i: int, shape: Sequence[int] = ()) -> ir.Value:
        """value * a^exponent mod m for each exponent, as the last axis or in `shape`."""
        powers = np.array([pow(MULTIPLIERS[i], exponent, MODULI[i]) for exponent in exponents], np.int64)
        return self.op.Mod(self.op.Mul(value, powers.reshape(shape or -1)), MODULI[i])

    def _joined(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """((first - second) mod (m - 1) + 1) / m, m the first modulus; never 0."""
        numbers = self.op.Add(self.op.Mod(self.op.Sub(first, second), MODULI[0] - 1), 1)
        return self.op.Mul(self.op.Cast(numbers, to=int(ir.DataType.FLOAT)), 1 / MODULI[0])
