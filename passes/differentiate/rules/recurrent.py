"""Gradients of recurrent layers (LSTM, GRU, RNN).

All states of the forward are known, so the gates of all steps come from two matrix products.  A Scan runs through the
steps in reverse order.  A step is a few element-wise products and one matrix product with the recurrent weights.
"""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import Gradient, GradientBuilder, gradient
from ttac.passes.differentiate.rules.recurrent_parts import (
    FIRST,
    Direction,
    directions,
    first_state,
    gradients,
    of_direction,
    of_sigmoid,
    of_tanh,
    products,
    reverse,
    shifted,
    split,
    zeros,
)
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.scan import Values, scan
from ttac.passes.graph.shapes import dims

Found = tuple[list[ir.Value], ir.Value]
"""Gradients of the first states, and of the gates before their activations [T, N, gates * H]."""


@gradient("LSTM")
def lstm(op: GradientBuilder, node: ir.Node, *dys: Gradient) -> tuple[Gradient, ...]:
    """Return the gradients of the inputs and of the first states.

    c = f*c' + i*g,  h = o*tanh(c)   ->   dc += dh*o*(1 - tanh(c)^2),  dc' = dc*f,  and dh' = the gradients of the
    four gates, dc*g, dh*tanh(c), dc*c' and dc*i, each times the derivative of its activation, times R.
    """
    dy, dh, dc = (*dys, None, None)[:3]
    found = [(at, *_lstm(op, at, dc)) for at in directions(op, node, dy, dh)]
    return gradients(op, node, found)


def _lstm(op: GradientBuilder, at: Direction, dc: Gradient) -> Found:
    i, o, f, g = split(op, at, op.Add(*products(op, at)))
    i, o, f, g = op.Sigmoid(i), op.Sigmoid(o), op.Sigmoid(f), op.Tanh(g)
    begin = first_state(op, at.node, FIRST + 1, at.place)
    _, (c,) = scan(op, _cell, [begin], [f, op.Mul(i, g)], backwards=at.backwards)
    known = op.Tanh(c)
    factors = [
        op.Mul(o, of_tanh(op, known)),
        op.Mul(g, of_sigmoid(op, i)),
        op.Mul(known, of_sigmoid(op, o)),
        op.Mul(shifted(op, c, begin, backwards=at.backwards), of_sigmoid(op, f)),
        op.Mul(i, of_tanh(op, g)),
        f,
    ]
    last = zeros(op, at.node) if dc is None else of_direction(op, dc, at.place, 0)
    return reverse(op, at, _lstm_step, [at.dh, last], factors, [at.r])


def _cell(op: Builder, states: Values, slices: Values, _: Values) -> tuple[Values, Values]:
    c = op.Add(op.Mul(slices[0], states[0]), slices[1])
    return [c], [op.Identity(c)]


def _lstm_step(op: Builder, states: Values, slices: Values, fixed: Values) -> tuple[Values, Values]:
    by_cell, of_i, of_o, of_f, of_g, f, *dy = slices
    dh = op.Add(states[0], dy[0]) if dy else states[0]
    dc = op.Add(states[1], op.Mul(dh, by_cell))
    gates = op.Concat(op.Mul(dc, of_i), op.Mul(dh, of_o), op.Mul(dc, of_f), op.Mul(dc, of_g), axis=-1)
    return [op.MatMul(gates, fixed[0]), op.Mul(dc, f)], [op.Identity(gates)]


@gradient("GRU")
def gru(op: GradientBuilder, node: ir.Node, *dys: Gradient) -> tuple[Gradient, ...]:
    """Return the gradients of the inputs and of the first state.

    h = (1 - z)*n + z*h'   ->   dz = dh*(h' - n),  dn = dh*(1 - z),  dh' = dh*z + the gradients through the gates.
    """
    dy, dh = (*dys, None)[:2]
    one = _gru_before if node.attributes.get_int("linear_before_reset", 0) else _gru_behind
    return gradients(op, node, [(at, *one(op, at)) for at in directions(op, node, dy, dh)])


def _gru_before(op: GradientBuilder, at: Direction) -> Found:
    """n = tanh(a + r*q), where q = h' R + b and a is the share of the input."""
    (zx, rx, a), (zh, rh, q) = (split(op, at, product) for product in products(op, at))
    z, r = op.Sigmoid(op.Add(zx, zh)), op.Sigmoid(op.Add(rx, rh))
    n = op.Tanh(op.Add(a, op.Mul(r, q)))
    of_z, of_n = _outer_factors(op, at, z, n)
    factors = [of_z, op.Mul(op.Mul(of_n, q), of_sigmoid(op, r)), of_n, op.Mul(of_n, r), z]
    return reverse(op, at, _before_step, [at.dh], factors, [at.r])


def _outer_factors(op: Builder, at: Direction, z: ir.Value, n: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return the derivatives of the state by the gates z and n before their activations."""
    of_z = op.Mul(op.Sub(at.before, n), of_sigmoid(op, z))
    return of_z, op.Mul(op.Sub(1.0, z), of_tanh(op, n))


def _before_step(op: Builder, states: Values, slices: Values, fixed: Values) -> tuple[Values, Values]:
    of_z, of_r, of_n, of_q, z, *dy = slices
    dh = op.Add(states[0], dy[0]) if dy else states[0]
    dz, dr = op.Mul(dh, of_z), op.Mul(dh, of_r)
    through = op.MatMul(op.Concat(dz, dr, op.Mul(dh, of_q), axis=-1), fixed[0])
    return [op.Add(op.Mul(dh, z), through)], [op.Concat(dz, dr, op.Mul(dh, of_n), axis=-1)]


def _gru_behind(op: GradientBuilder, at: Direction) -> Found:
    """n = tanh(a + (r*h') R), where a is the share of the input and of both biases."""
    hidden = int(dims(at.r)[1])
    gates, own = op.Split(at.r, [2 * hidden, hidden], axis=0, outputs=2)
    (zx, rx, a), (zh, rh, _) = (split(op, at, product) for product in products(op, at))
    z, r = op.Sigmoid(op.Add(zx, zh)), op.Sigmoid(op.Add(rx, rh))
    inside = op.Add(a, op.MatMul(op.Mul(r, at.before), op.Transpose(own, perm=[1, 0])))
    if at.bias:
        inside = op.Add(inside, op.Split(at.bias[1], [2 * hidden, hidden], axis=0, outputs=2)[1])
    of_z, of_n = _outer_factors(op, at, z, op.Tanh(inside))
    factors = [of_z, op.Mul(at.before, of_sigmoid(op, r)), of_n, r, z]
    return reverse(op, at, _behind_step, [at.dh], factors, [gates, own])


def _behind_step(op: Builder, states: Values, slices: Values, fixed: Values) -> tuple[Values, Values]:
    of_z, of_r, of_n, r, z, *dy = slices
    dh = op.Add(states[0], dy[0]) if dy else states[0]
    dn = op.Mul(dh, of_n)
    reset = op.MatMul(dn, fixed[1])
    gates = op.Concat(op.Mul(dh, of_z), op.Mul(reset, of_r), axis=-1)
    direct = op.Add(op.Mul(dh, z), op.Mul(reset, r))
    return [op.Add(direct, op.MatMul(gates, fixed[0]))], [op.Concat(gates, dn, axis=-1)]


@gradient("RNN")
def rnn(op: GradientBuilder, node: ir.Node, *dys: Gradient) -> tuple[Gradient, ...]:
    """h = tanh(x W + h' R + b)   ->   da = dh*(1 - h^2),  dh' = da R,  dx = da W."""
    dy, dh = (*dys, None)[:2]
    found = []
    for at in directions(op, node, dy, dh):
        factor = of_tanh(op, op.Tanh(op.Add(*products(op, at))))
        found.append((at, *reverse(op, at, _rnn_step, [at.dh], [factor], [at.r])))
    return gradients(op, node, found)


def _rnn_step(op: Builder, states: Values, slices: Values, fixed: Values) -> tuple[Values, Values]:
    factor, *dy = slices
    gates = op.Mul(op.Add(states[0], dy[0]) if dy else states[0], factor)
    return [op.MatMul(gates, fixed[0])], [op.Identity(gates)]
