"""Recurrent layers in PyTorch, whose gradients come from autograd: PyTorch's own layers, and ONNX's equations step by step."""

from __future__ import annotations

from typing import Any

from tests.support.gradient_case import Case

GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Recurrent operator -> positions of PyTorch's gates among those of ONNX."""


def recurrent(case: Case, x: Any, w: Any, r: Any, bias: Any = None, _: Any = None, *first: Any) -> list[Any]:
    """Return the states [T, directions, N, H] and the last states of ONNX's operator on x [T, N, I]."""
    import torch

    hidden, begin = case.attributes["hidden_size"], [given for given in first if given is not None]
    zeros = [torch.zeros(len(w), x.shape[1], hidden, dtype=x.dtype)] * 2
    begin, bias = (
        [*begin, *zeros[len(begin) :]],
        torch.zeros(len(w), 2 * w.shape[1], dtype=x.dtype) if bias is None else bias,
    )
    rows, last = [], []
    for turn in range(len(w)):
        backward = turn == 1 or case.attributes.get("direction") == "reverse"
        states, found = tuple(state[turn] for state in begin), []
        for step in x.flip(0) if backward else x:
            states = STEPS[case.op](case, step, states, w[turn], r[turn], *bias[turn].chunk(2))
            found.append(states[0])
        rows.append(torch.stack(found[::-1] if backward else found))
        last.append(states)
    outputs = [torch.stack(rows, 1), *(torch.stack(each) for each in zip(*last, strict=True))]
    if is_of_torch(case):
        torch.testing.assert_close(outputs[0], of_torch(case, x, w, r, bias, begin))
    return outputs


def _lstm(_: Case, x: Any, states: Any, w: Any, r: Any, b: Any, d: Any) -> Any:
    h, c = states
    i, o, f, g = (x @ w.T + h @ r.T + b + d).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(case: Case, x: Any, states: Any, w: Any, r: Any, b: Any, d: Any) -> Any:
    h, (wz, wr, wh), (rz, rr, rh) = states[0], (x @ w.T + b).chunk(3, 1), r.chunk(3)
    dz, dr, dh = d.chunk(3)
    z, reset = (wz + h @ rz.T + dz).sigmoid(), (wr + h @ rr.T + dr).sigmoid()
    linear = case.attributes.get("linear_before_reset", 0)
    n = (wh + (reset * (h @ rh.T + dh) if linear else (reset * h) @ rh.T + dh)).tanh()
    return ((1 - z) * n + z * h,)


def _rnn(_: Case, x: Any, states: Any, w: Any, r: Any, b: Any, d: Any) -> Any:
    return ((x @ w.T + states[0] @ r.T + b + d).tanh(),)


STEPS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def is_of_torch(case: Case) -> bool:
    """Whether PyTorch has the layer: its GRU multiplies by the reset gate behind the product."""
    return case.attributes.get("direction") != "reverse" and (
        case.op != "GRU" or bool(case.attributes.get("linear_before_reset", 0))
    )


def of_torch(case: Case, x: Any, w: Any, r: Any, bias: Any, begin: Any) -> Any:
    """Return the states [T, directions, N, H] of PyTorch's layer with the weights of the node."""
    import torch

    hidden, order = case.attributes["hidden_size"], GATES[case.op]
    parts = [part for whole in zip(w, r, *bias.chunk(2, 1), strict=True) for part in whole]
    weights = [torch.cat([part[gate * hidden : (gate + 1) * hidden] for gate in order]) for part in parts]
    function = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh}[case.op]
    states = tuple(begin) if case.op == "LSTM" else begin[0]
    y = function(x, states, weights, True, 1, 0.0, False, len(w) == 2, False)[0]
    return y.reshape(*x.shape[:2], len(w), hidden).permute(0, 2, 1, 3)
