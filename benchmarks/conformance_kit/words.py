"""Cases of the kit with hand-made bundles: each word of the program, each move of the state, each dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from benchmarks.conformance_kit.bundles import Made

Call: TypeAlias = tuple[Any, ...]
"""`("step", inputs)`, `("predict", inputs)`, `("reset",)`, `("save", file)` or `("restore", file)`.

`("refused", call)` is a call that must fail and change nothing."""

NAN, INFINITE = np.nan, np.inf
GAIN = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)
TWO_CLASSES = {"logits": ("float32", ["N", 2])}
ONE = np.float32(1)


def samples(count: int, seed: int, shape: Sequence[int] = (3,)) -> dict[str, np.ndarray]:
    """Inputs of the hand-made bundles: float32 [count, *shape] under the name `x`."""
    return {"x": np.random.RandomState(seed).standard_normal((count, *shape)).astype(np.float32)}


def spoiled(count: int, seed: int, *rows: int, value: float = NAN) -> dict[str, np.ndarray]:
    """Samples; the given rows hold one value that is not finite."""
    inputs = samples(count, seed)
    inputs["x"][list(rows), -1] = value
    return inputs


def steps(*sizes: int) -> list[Call]:
    """A step for each size."""
    return [("step", samples(size, seed)) for seed, size in enumerate(sizes)]


def counting(step: Sequence[Mapping[str, Any]], **more: Any) -> Made:
    """Graphs that count: `logits` are x plus the `level` that the forward read; the state `level` begins at 1."""
    moved = {"level_next": "level"}
    return Made(
        graphs={
            "forward": "forward (float[N,3] x, float level) => (float[N,3] logits) { logits = Add(x, level) }",
            "raise": "raise (float level) => (float level_next) <float one = {1}> { level_next = Add(level, one) }",
            "double": "double (float level) => (float level_next) { level_next = Add(level, level) }",
            "tell": """
tell (float[N,3] x, float level) => (float gate, float samples) <float limit = {2.5}, int64 first = {0}> {
  gate = Sub(level, limit)
  shape = Shape(x)
  rows = Gather(shape, first)
  samples = Cast <to = 1> (rows)
}""",
        },
        step=step,
        state={"level": (ONE, "counter"), "other": (np.float32(7), "counter")},
        moves={"raise": moved, "double": moved},
        stats={"tell": {"samples": "seen"}},
        **more,
    )


RETURN = {"return": ["logits"]}
FORWARD, RAISE, DOUBLE, TELL = ({"run": name} for name in ("forward", "raise", "double", "tell"))


def _programs() -> dict[str, tuple[Made, list[Call]]]:
    nested = {"repeat": 2, "do": [RAISE, {"repeat": 3, "do": [DOUBLE]}]}
    gated = [TELL, {"when": "gate", "then": [DOUBLE, FORWARD, RETURN], "otherwise": [RAISE, FORWARD, RETURN]}]
    inner = {"when": "gate", "then": [{"reset": ["level"]}, {"when": "level", "then": [DOUBLE]}]}
    return {
        "return-state": (counting([RAISE, FORWARD, RETURN]), steps(4, 1, 3)),
        "repeat": (counting([FORWARD, nested, RETURN]), steps(2, 2)),
        "when-both-branches-return": (counting(gated), steps(4, 4, 4, 4, 4)),
        "when-nested-and-reset": (counting([TELL, FORWARD, inner, RAISE, RETURN]), steps(4, 4, 4, 4, 4)),
        "when-without-otherwise": (
            counting([TELL, {"when": "gate", "then": [DOUBLE]}, RAISE, FORWARD, RETURN]),
            steps(1, 2, 3),
        ),
        "reset-all": (counting([RAISE, FORWARD, {"reset": "all"}, DOUBLE, RETURN]), steps(4, 4)),
        "rows": (counting([{"run": "tell", "rows": 2}, FORWARD, RAISE, RETURN]), steps(4, 2, 1)),
        "feed-state": (
            counting([RAISE, {"run": "forward", "feed": {"level": "other"}}, RETURN]),
            [*steps(2, 3), ("predict", samples(4, 9))],
        ),
        "calls": (
            counting([RAISE, FORWARD, RETURN]),
            [
                ("predict", samples(4, 0)),
                *steps(4, 4),
                ("predict", samples(1, 1)),
                ("save", "two-steps.safetensors"),
                ("reset",),
                ("predict", samples(2, 2)),
                ("restore", "two-steps.safetensors"),
                *steps(3),
                ("refused", ("step", samples(5, 3))),
                ("refused", ("step", samples(0, 3))),
                ("refused", ("step", samples(2, 3, (4,)))),
                ("refused", ("step", {"y": samples(2, 3)["x"]})),
                ("refused", ("step", {"x": samples(2, 3)["x"].astype(np.int32)})),
                ("predict", samples(2, 2)),
            ],
        ),
    }


VALUES = {"minus": -1.0, "zero": 0.0, "nan": NAN, "tiny": 1e-30, "infinite": INFINITE}


def _conditions() -> tuple[Made, list[Call]]:
    """`when` on negative, 0, NaN, tiny and infinite; on the first of several elements; on an integer and a bool."""
    make = [f"{name} = Add(zeros, {name}_constant)" for name in VALUES]
    constants = ", ".join(
        f"float[2] {name}_constant = {{{_literal(value)}, 5}}" for name, value in VALUES.items() if np.isfinite(value)
    )
    odd = "root = Sqrt(minus_constant) nan_constant = Identity(root) infinite_constant = Div(ones, zeros)"
    outputs = ", ".join(f"float[2] {name}" for name in VALUES)
    text = (
        f"values (float[N,3] x) => ({outputs}, int64 whole, bool yes) <{constants}, float[2] zeros = {{0, 0}}, "
        f"float[2] ones = {{1, 1}}, int64 two = {{2}}> {{ {odd} {' '.join(make)} "
        "whole = Identity(two) less = Sub(two, two) yes = Greater(two, less) }"
    )
    words: list[Mapping[str, Any]] = [{"run": "values"}]
    names = [*VALUES, "whole", "yes"]
    words += [{"when": name, "then": [RAISE], "otherwise": [DOUBLE]} for name in names]
    made = counting([*words, FORWARD, RETURN])
    return Made(**{**made.__dict__, "graphs": {**made.graphs, "values": text}}), steps(2)


def _literal(value: float) -> str:
    return format(value, "g")


EMA = """
forward (float[N,3] x, float[3] mean, int64 count)
  => (float[N,2] logits, float[3] mean_next, int64 count_next, float spread)
  <float[3,2] gain = {0, 0, 0, 0, 0, 0}, float keep = {0.75}, float give = {0.25}, int64 one = {1}, int64[1] rows = {0}>
{
  centred = Sub(x, mean)
  h = MatMul(centred, gain)
  logits = Relu(h)
  now = ReduceMean <keepdims = 0> (x, rows)
  old = Mul(mean, keep)
  new = Mul(now, give)
  mean_next = Add(old, new)
  count_next = Add(count, one)
  square = Mul(logits, logits)
  spread = ReduceMean <keepdims = 0> (square)
}"""


def ema(**more: Any) -> Made:
    """One graph that subtracts and updates a running mean; its weight is external data."""
    state = {"mean": (np.array([0.5, 0, -0.5], np.float32), "statistic"), "count": (np.array(0), "counter")}
    return Made(
        graphs={"forward": EMA},
        step=[FORWARD, RETURN],
        state=state,
        moves={"forward": {"mean_next": "mean", "count_next": "count"}},
        stats={"forward": {"spread": "spread"}},
        weights={"apart": np.arange(5, dtype=np.int8), "gain": GAIN},
        external=["gain"],
        outputs=TWO_CLASSES,
        **more,
    )


def _samples_that_are_not_finite() -> list[Call]:
    huge = {"x": np.full((4, 3), 3e38, np.float32)}
    return [
        ("step", samples(4, 0)),
        ("step", spoiled(4, 1, 1)),
        ("step", spoiled(4, 2, 0, 3, value=INFINITE)),
        ("step", spoiled(4, 3, 0, 1, 2)),
        ("step", spoiled(3, 4, 0, 1, 2, value=-INFINITE)),
        ("predict", spoiled(4, 5, 2)),
        ("predict", spoiled(2, 5, 0, 1)),
        ("step", huge),
        ("step", samples(3, 6)),
        *[("step", huge)] * 10,
        ("step", samples(3, 7)),
    ]


TRAINED = {
    "forward": """
forward (float[N,3] x, float[3,2] gain, float[2] scale) => (float[N,2] logits, float[N,2] h) {
  h = MatMul(x, gain)
  logits = Mul(h, scale)
}""",
    "backward": """
backward (float[N,2] logits, float[N,2] h) => (float[2] scale_grad, float loss) <int64[1] rows = {0}> {
  p = Mul(logits, h)
  scale_grad = ReduceMean <keepdims = 0> (p, rows)
  square = Mul(logits, logits)
  loss = ReduceMean <keepdims = 0> (square)
}""",
    "update": """
update (float[2] scale, float[2] scale_grad, float[2] momentum) => (float[2] scale_next, float[2] momentum_next)
  <float rate = {0.5}, float keep = {0.9}>
{
  kept = Mul(momentum, keep)
  momentum_next = Add(kept, scale_grad)
  change = Mul(momentum_next, rate)
  scale_next = Sub(scale, change)
}""",
}


def trained(update: Mapping[str, Any], tail: Sequence[Mapping[str, Any]] = (RETURN,)) -> Made:
    """Forward, backward and update: a scale trained to make the logits small; the weight is an input of the graph."""
    return Made(
        graphs=TRAINED,
        step=[FORWARD, {"run": "backward"}, update, *tail],
        state={"scale": (np.ones(2, np.float32), "parameter"), "momentum": (np.zeros(2, np.float32), "optimizer")},
        moves={"update": {"scale_next": "scale", "momentum_next": "momentum"}},
        stats={"backward": {"loss": "loss"}},
        weights={"gain": GAIN, "unused": GAIN},
        outputs=TWO_CLASSES,
        settings={"lr": 0.5, "momentum": 0.9, "eps": 1e-05, "whole": 1.0, "flag": True, "name": 'é"', "none": None},
    )


def _deferred() -> Made:
    """Two deferred runs and a run at its place; the second deferred run reads a value of the step."""
    made = trained({"run": "update", "deferred": True})
    tally = "tally (float[N,3] x, float[3] total) => (float[3] total_next) <int64[1] rows = {0}> "
    tally += "{ now = ReduceSum <keepdims = 0> (x, rows) total_next = Add(total, now) }"
    scale = "note (float[2] scale_grad) => (float[2] keep) { keep = Abs(scale_grad) }"
    return Made(
        **{
            **made.__dict__,
            "graphs": {**made.graphs, "tally": tally, "note": scale},
            "step": [*made.step[:-1], {"run": "tally", "deferred": True}, {"run": "note"}, RETURN],
            "state": {
                **made.state,
                "total": (np.zeros(3, np.float32), "parameter"),
                "keep.ratios": (np.zeros(2, np.float32), "sparsity"),
            },
            "moves": {**made.moves, "tally": {"total_next": "total"}, "note": {"keep": "keep.ratios"}},
        }
    )


def _only() -> Made:
    """A second run of the forward on another value, without the outputs of the first run."""
    made = trained({"run": "update"})
    view = "view (float[N,3] x) => (float[N,3] changed) { changed = Neg(x) }"
    again = {"run": "forward", "feed": {"x": "changed"}, "only": ["h"]}
    step = [FORWARD, {"run": "view"}, again, {"run": "backward"}, {"run": "update"}, RETURN]
    return Made(**{**made.__dict__, "graphs": {**made.graphs, "view": view}, "step": step})


def _shadows() -> Made:
    """A value named like a state tensor and like a weight: values of the step come first, then state, then weights."""
    first = "first (float[N,3] x, float level, float[3] shift) => (float[N,3] logits) "
    first += "{ moved = Add(x, level) logits = Add(moved, shift) }"
    hide = "hide (float[3] shift, float level) => (float[3] shift_new) { shift_new = Add(shift, level) }"
    rename = "rename (float[3] shift_new) => (float[3] shift) { shift = Neg(shift_new) }"
    return Made(
        graphs={"forward": first, "hide": hide, "rename": rename},
        step=[{"run": "hide"}, {"run": "rename"}, FORWARD, RETURN],
        state={"level": (np.float32(2), "statistic")},
        moves={"rename": {}},
        weights={"shift": np.array([1, 2, 3], np.float32)},
    )


DTYPES = {
    "float64": "double",
    "float16": "float16",
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "bool": "bool",
}


def _dtypes() -> Made:
    """State of every dtype, moved through a graph that casts it from the batch and keeps the old value beside it."""
    state = {"mark": (np.float32(3), "statistic")}
    casts, outputs, moves = [], [], {}
    numbers = {"float": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9}
    numbers |= {"float16": 10, "double": 11, "uint32": 12}
    for dtype, name in DTYPES.items():
        state[f"s.{dtype}"] = (np.array([1, 0], dtype), "counter")
        casts.append(f"{dtype}_next = Cast <to = {numbers[name]}> (counts)")
        outputs.append(f"{name}[2] {dtype}_next")
        moves[f"{dtype}_next"] = f"s.{dtype}"
    text = (
        f"forward (float[N,3] x, float mark) => (float[N,3] logits, {', '.join(outputs)}) "
        "<int64[2] places = {0, 0}> { shape = Shape(x) counts = Gather(shape, places) logits = Add(x, mark) "
        f"{' '.join(casts)} }}"
    )
    return Made(graphs={"forward": text}, step=[FORWARD, RETURN], state=state, moves={"forward": moves})


def _shapes() -> tuple[Made, list[Call]]:
    """Several inputs and outputs: integers, the samples on the second axis, no samples axis, a size of the run."""
    text = """
forward (float[N,3] x, int64[N] label, float level)
  => (float[N,3] logits, float[3,N] turned, int64[N] next, float[3] mean, int64[found] places, bool[N,3] above)
  <int64 one = {1}, int64[1] rows = {0}, float zero = {0}, int64[1] flat = {-1}>
{
  logits = Add(x, level)
  turned = Transpose <perm = [1, 0]> (logits)
  next = Add(label, one)
  mean = ReduceMean <keepdims = 0> (x, rows)
  above = Greater(x, zero)
  found2 = NonZero(above)
  places = Reshape(found2, flat)
}"""
    raised = "raise (float level) => (float level_next) <float one = {1}> { level_next = Add(level, one) }"
    outputs: dict[str, tuple[str, list[Any]]] = {
        "logits": ("float32", ["N", 3]),
        "turned": ("float32", [3, "N"]),
        "next": ("int64", ["N"]),
        "mean": ("float32", [3]),
        "places": ("int64", ["found"]),
        "above": ("bool", ["N", 3]),
    }
    made = Made(
        graphs={"forward": text, "raise": raised},
        step=[FORWARD, RAISE, {"return": list(outputs)}],
        predict=[{"run": "forward"}, {"return": list(outputs)}],
        state={"level": (ONE, "parameter")},
        moves={"raise": {"level_next": "level"}},
        inputs={"x": ("float32", ["N", 3]), "label": ("int64", ["N"])},
        outputs=outputs,
        smallest=2,
    )

    def labelled(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**inputs, "label": np.arange(len(inputs["x"]), dtype=np.int64)}

    calls: list[Call] = [
        ("step", labelled(samples(4, 0))),
        ("step", labelled(samples(2, 1))),
        ("step", labelled(spoiled(4, 2, 1))),
        ("step", labelled(spoiled(4, 3, 0, 1, 3))),
        ("step", labelled(spoiled(2, 4, 0, 1))),
        ("predict", labelled(spoiled(3, 5, 2))),
        ("refused", ("step", labelled(samples(1, 6)))),
        ("refused", ("step", samples(2, 6))),
        ("refused", ("step", {**labelled(samples(2, 6)), "label": np.arange(3)})),
    ]
    return made, calls


def _axes() -> tuple[Made, list[Call]]:
    """Samples on the second axis of an input, and an input that all samples share, also with `rows`."""
    forward = "forward (float[3,N] x, float[3,1] shift, float level) => (float[3,N] logits) "
    forward += "{ moved = Add(x, shift) logits = Add(moved, level) }"
    learn = "learn (float[3,N] x, float level) => (float level_next) "
    learn += "{ now = ReduceMean <keepdims = 0> (x) level_next = Add(level, now) }"
    made = Made(
        graphs={"forward": forward, "learn": learn},
        step=[FORWARD, {"run": "learn", "rows": 2}, RETURN],
        state={"level": (ONE, "parameter")},
        moves={"learn": {"level_next": "level"}},
        inputs={"x": ("float32", [3, "N"]), "shift": ("float32", [3, 1])},
        outputs={"logits": ("float32", [3, "N"])},
        smallest=2,
    )

    def shifted(inputs: dict[str, np.ndarray], shift: float = 0.5) -> dict[str, np.ndarray]:
        turned = np.ascontiguousarray(inputs["x"].T)
        return {"x": turned, "shift": np.array([[1], [2], [shift]], np.float32)}

    calls: list[Call] = [
        ("step", shifted(samples(4, 0))),
        ("step", shifted(samples(2, 1))),
        ("step", shifted(spoiled(4, 2, 0))),
        ("step", shifted(spoiled(4, 3, 0, 1, 3))),
        ("step", shifted(samples(3, 4), NAN)),
        ("predict", shifted(spoiled(3, 5, 1))),
        ("refused", ("step", shifted(samples(1, 6)))),
        ("refused", ("step", {"x": samples(3, 6)["x"], "shift": np.zeros((1, 3), np.float32)})),
    ]
    return made, calls


def _rejected_deferred() -> list[Call]:
    huge = {"x": np.full((4, 3), 3e38, np.float32)}
    return [*steps(4, 2), ("step", huge), ("predict", samples(2, 3)), *steps(1), *[("step", huge)] * 10, *steps(2)]


def open_sizes() -> Made:
    """Two inputs with the open size `width`, and one with an open size of its own; `level` learns from all of them."""
    text = """
forward (float[N,2,width] x, float[width] gain, float[length] bias, float level) => (float[N,2] logits, float mean)
  <int64[1] last = {-1}>
{
  scaled = Mul(x, gain)
  pooled = ReduceMean <keepdims = 0> (scaled, last)
  offset = ReduceMean <keepdims = 0> (bias)
  moved = Add(pooled, offset)
  logits = Add(moved, level)
  mean = ReduceMean <keepdims = 0> (logits)
}"""
    learn = "learn (float mean, float level) => (float level_next) { level_next = Add(level, mean) }"
    return Made(
        graphs={"forward": text, "learn": learn},
        step=[FORWARD, {"run": "learn"}, RETURN],
        state={"level": (ONE, "parameter")},
        moves={"learn": {"level_next": "level"}},
        inputs={"x": ("float32", ["N", 2, "width"]), "gain": ("float32", ["width"]), "bias": ("float32", ["length"])},
        outputs=TWO_CLASSES,
        sizes={"width": (8, 2), "length": (5, 1, 2)},
    )


def _open_sizes() -> list[Call]:
    def of(count: int, width: int, length: int, gain: int | None = None) -> dict[str, np.ndarray]:
        inputs = samples(count, width, (2, width))
        gains = np.linspace(0.5, 1.5, width if gain is None else gain, dtype=np.float32)
        return {**inputs, "gain": gains, "bias": np.arange(length, dtype=np.float32)}

    bad = [of(4, 3, 2), of(4, 10, 2), of(4, 0, 2), of(4, 4, 6), of(4, 4, 0), of(4, 4, 1), of(4, 4, 2, gain=6)]
    spoilt = of(3, 8, 2)
    spoilt["x"][1, 0, 7] = NAN
    good: list[Call] = [("step", of(4, 8, 5)), ("step", of(2, 2, 2)), ("step", spoilt), ("predict", of(1, 6, 3))]
    return [*good, *(("refused", ("step", inputs)) for inputs in bad), ("step", of(4, 4, 4))]


def cases() -> dict[str, tuple[Made, list[Call]]]:
    """Name -> bundle and calls."""
    saved = [*steps(4, 3), ("save", "trained.safetensors"), *steps(2), ("restore", "trained.safetensors"), *steps(1)]
    rejecting = trained({"run": "update"}, [{"reset": ["momentum"]}, RETURN])
    return {
        **_programs(),
        "when-values": _conditions(),
        "statistics-and-external-weights": (ema(), steps(4, 2, 1)),
        "not-finite": (ema(smallest=2), _samples_that_are_not_finite()),
        "forward-backward-update": (trained({"run": "update"}), saved),
        "reset-named": (rejecting, steps(4, 4, 2)),
        "only-and-feed": (_only(), steps(4, 2)),
        "deferred": (_deferred(), _rejected_deferred()),
        "shadows": (_shadows(), steps(2, 3)),
        "dtypes": (
            _dtypes(),
            [*steps(1, 3), ("save", "dtypes.safetensors"), ("reset",), ("restore", "dtypes.safetensors")],
        ),
        "several-inputs-and-outputs": _shapes(),
        "samples-on-any-axis": _axes(),
        "open-sizes": (open_sizes(), _open_sizes()),
    }
