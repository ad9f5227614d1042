"""The ways a value crosses to the backward: round trips through the engine, against numpy, for every codec there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.whole_models import SINGLE, Arrays, spelled
from ttac.passes.build import Builder
from ttac.passes.codecs import CODECS, Choice, Codec, block_of, row_of
from ttac.passes.emit import write_graphs
from ttac.passes.execute import Executable, run
from ttac.passes.vocabulary import DOMAIN, expand_all

PLANNED = 8
"""Samples that the bytes are promised for; fewer must do as well."""
SHAPES = {
    "maps": (4, 8, 8), "odd maps": (3, 5, 7), "long rows": (2, 40, 40), "tokens": (5, 16), "sequence": (3, 30),
    "features": (24,), "odd": (9,), "one": (1,),
}  # fmt: skip


def values(kind: str, shape: Sequence[int]) -> np.ndarray:
    """float32 [*shape] of a kind."""
    random = np.random.default_rng(len(kind))
    x = random.normal(size=shape).astype(np.float32)
    rows = x.reshape(-1, shape[-1])
    if kind == "zero":
        x[...] = 0
    elif kind == "zero rows":
        rows[::2] = 0
    elif kind == "constant rows":
        rows[...] = np.arange(1, len(rows) + 1, dtype=np.float32)[:, None] - 2.5
    elif kind == "relu":
        x = np.maximum(x, 0)
    elif kind == "far from zero":
        x += 40
    elif kind == "below zero":
        x -= 40
    elif kind == "huge":
        x *= 1e12
    elif kind == "small":
        x *= 1e-12
    elif kind == "uneven":
        rows *= (10.0 ** np.linspace(-6, 4, len(rows)))[:, None].astype(np.float32)
    return x


KINDS = ("normal", "zero", "zero rows", "constant rows", "relu", "far from zero", "below zero", "huge", "small", "uneven")  # fmt: skip


@dataclass(frozen=True)
class Built:
    """Save and restore of one codec in one graph, for samples of a shape."""

    codec: Codec
    x: ir.Value
    executable: Executable

    def __call__(self, x: np.ndarray, keep: float = 1.0, weight: np.ndarray | None = None) -> Arrays:
        """Outputs: `saved.0`, ..., `restored`, of any further name what `extra` made."""
        weights = np.ones(x.shape[1], np.float32) if weight is None else weight
        return self.executable({"x": x, "keep": np.array(keep, np.float32), "weight": weights})

    def saved(self, found: Arrays) -> list[np.ndarray]:
        return [found[f"saved.{i}"] for i in range(1 + len(self.codec.parts))]


@cache
def built(name: str, shape: tuple[int, ...], weighed: bool = False) -> Built:
    """The round trip of the codec `name`."""
    import tempfile

    codec = CODECS[name]
    x = ir.val("x", ir.DataType.BOOL if name == "bits" else SINGLE, ["N", *shape])
    keep, weight = ir.val("keep", SINGLE, []), ir.val("weight", SINGLE, [shape[0]])
    graph = ir.Graph([x, keep, weight], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="trip")
    op = Builder(graph, "test")
    saved = list(codec.save(op, x, Choice(keep, weight if weighed else None) if codec.drops else None))
    assert len(saved) == 1 + len(codec.parts)
    restored = codec.restore(op, saved, x)
    assert restored.dtype == x.dtype and str(restored.shape) == str(x.shape), "what reads the value sees its type"
    names = {f"saved.{i}": value for i, value in enumerate(saved)} | {"restored": restored}
    for title, value in names.items():
        graph.outputs.append(op.Identity(value, name=title, like=value))
    with tempfile.TemporaryDirectory() as folder:
        write_graphs(Path(folder), {"trip": spelled(ir.Model(graph, ir_version=8))})
        return Built(codec, x, Executable(Path(folder) / "trip.onnx"))


# --- what each codec restores, in numpy -------------------------------------------------------------------------------


def exactly(trip: Built, x: np.ndarray, found: Arrays, keep: float) -> None:
    np.testing.assert_array_equal(found["restored"], x)


def half(trip: Built, x: np.ndarray, found: Arrays, keep: float) -> None:
    """Eleven bits, of subnormal numbers fewer; clipped."""
    clipped = np.clip(x, -65504, 65504)
    np.testing.assert_array_equal(found["restored"], clipped.astype(np.float16).astype(np.float32))
    assert (np.abs(found["restored"] - clipped) <= np.abs(clipped) * 2.0**-11 + 2.0**-25).all()


def int8(trip: Built, x: np.ndarray, found: Arrays, keep: float) -> None:
    rows, back = (each.reshape(-1, row_of(trip.x)).astype(np.float64) for each in (x, found["restored"]))
    span = np.maximum(rows.max(1), 0) - np.minimum(rows.min(1), 0)
    assert (np.abs(back - rows).max(1) <= span / 510 * 1.001 + 1e-28).all()
    assert (back[rows == 0] == 0).all(), "zeros stay zeros"


def kept_count(keep: float, total: int) -> int:
    """floor(keep * total), as float32 sees it."""
    return int(np.floor(np.float32(keep) * np.float32(total)))


def blocks(trip: Built, x: np.ndarray, found: Arrays, keep: float) -> None:
    """Kept blocks are close, the others their mean; the kept are those of the largest variance."""
    size = block_of(trip.x)
    true, back = (each.reshape(-1, size).astype(np.float64) for each in (x, found["restored"]))
    _, _, places, _ = trip.saved(found)
    kept = np.zeros(len(true), bool)
    kept[places[:, 0]] = True
    assert kept.sum() == len(places) == kept_count(keep, len(true))
    largest = np.abs(true).max(1, keepdims=True)
    assert (np.abs(back - true) <= largest / 254 * 1.001 + 1e-28)[kept].all()
    np.testing.assert_allclose(back[~kept], np.broadcast_to(true.mean(1, keepdims=True), true.shape)[~kept],
                               rtol=1e-5, atol=1e-6 * float(largest.max()))  # fmt: skip
    spread = true.var(1) * size
    # Variances are differences of squares in float32.
    slack = 1e-5 * float((true**2).sum(1).max())
    assert not kept.any() or kept.all() or spread[kept].min() >= spread[~kept].max() - slack


def some_or_nothing(trip: Built, x: np.ndarray, found: Arrays) -> np.ndarray:
    """Whether each element was kept; every one is itself or zero."""
    back = found["restored"]
    assert ((back == x) | (back == 0)).all()
    kept: np.ndarray = back != 0
    dropped, there = np.abs(x[~kept]), np.abs(x[kept])
    assert there.min(initial=math.inf) >= dropped.max(initial=0), "the largest are kept"
    return kept


def sparse(trip: Built, x: np.ndarray, found: Arrays, keep: float) -> None:
    """Exact quantile on small tensors; what ties with the threshold goes."""
    kept = some_or_nothing(trip, x, found)
    wanted = keep * x.size
    if keep < 1:
        assert np.count_nonzero(kept) <= wanted + 1
        ranked = np.sort(np.abs(x).ravel())[::-1]
        ties = np.count_nonzero(ranked == ranked[min(int(wanted), x.size - 1)])
        assert len(found["saved.0"]) >= wanted - ties - 1
    else:
        np.testing.assert_array_equal(found["restored"], x)


def topk(trip: Built, x: np.ndarray, found: Arrays, keep: float) -> None:
    count = kept_count(keep, x.size)
    some_or_nothing(trip, x, found)
    saved, places, shape = trip.saved(found)
    assert len(saved) == len(places) == count and len(set(places[:, 0])) == count
    assert shape.tolist() == list(x.shape)
    np.testing.assert_array_equal(np.sort(np.abs(saved)), np.sort(np.abs(x).ravel())[x.size - count :])


CASES: dict[str, Callable[[Built, np.ndarray, Arrays, float], None]] = {
    "dense": exactly, "fp16": half, "bits": exactly, "int8": int8, "blocks": blocks, "sparse": sparse, "topk": topk,
    "nonzero": exactly,
}  # fmt: skip
KEEPS = (0.0, 0.1, 0.5, 0.93, 1.0)


def promised_slack(trip: Built, n: int, x: np.ndarray) -> float:
    """Bytes above the promise that are none of the values': a byte a sample for the last bits, the shape of `topk`."""
    return {"bits": n, "sparse": n + 4, "nonzero": n, "topk": 8 * x.ndim}.get(trip.codec.name, 1e-6)


def test_every_codec_has_a_case() -> None:
    assert set(CASES) == set(CODECS)
    for codec in CODECS.values():
        assert codec.is_exact == (CASES[codec.name] is exactly) and codec.cost >= 0 and codec.exact_for
        assert codec.is_exact == (codec.exact_for == "all")


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("name", list(CODECS))
def test_a_round_trip(name: str, shape: str) -> None:
    """Any number of samples up to the planned, any share, any kind of values: the error stated, in the bytes promised."""
    codec = CODECS[name]
    trip_of = ir.val("x", SINGLE, ["N", *SHAPES[shape]])
    if name == "blocks" and not block_of(trip_of):
        return
    trip = built(name, SHAPES[shape])
    for kind in KINDS:
        for n in (1, 3, PLANNED):
            x = values(kind, (n, *SHAPES[shape]))
            x = x > 0 if name == "bits" else x
            for keep in KEEPS if codec.drops else (1.0,):
                found = trip(x, keep)
                CASES[name](trip, x, found, keep)
                share = np.count_nonzero(x) / x.size if name == "nonzero" else keep
                size = sum(tensor.nbytes for tensor in trip.saved(found))
                assert size <= n * codec.bytes(trip.x, share) + promised_slack(trip, n, x), (kind, n, keep)


def test_rows_too_short_for_blocks() -> None:
    for shape, size in {(4, 8, 8): 64, (3, 5, 7): 35, (5, 16): 16, (2, 40, 40): 80, (2, 112, 112): 112, (3, 2, 2): 0,
                        (2, 56, 56): 56, (7, 7, 7): 49, (8, 300): 60}.items():  # fmt: skip
        assert block_of(ir.val("x", SINGLE, ["N", *shape])) == size, shape


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["normal", "relu", "uniform", "heavy tails", "uneven", "few distinct", "lines"])
def test_a_sampled_threshold_keeps_what_is_asked_for(kind: str, keep: float) -> None:
    """Within 2 % of the asked count on tensors of 64k elements and more, however they are distributed."""
    random = np.random.default_rng(0)
    for n, shape in ((2, (32, 64, 64)), (1, (16, 64, 64)), (4, (65, 33, 31))):
        size = (n, *shape)
        x = {
            "normal": lambda: random.normal(size=size),
            "relu": lambda: np.maximum(random.normal(0.5, 1.0, size), 0),
            "uniform": lambda: random.uniform(-1, 1, size),
            "heavy tails": lambda: random.standard_cauchy(size),
            "uneven": lambda: random.normal(size=size) * 10.0 ** random.uniform(-2, 2, (1, shape[0], 1, 1)),
            "few distinct": lambda: random.normal(size=size).round(3),
            # Every column of a map has its own scale: samples must not all fall on one.
            "lines": lambda: random.normal(size=size) * (1 + np.arange(shape[-1])),
        }[kind]().astype(np.float32)
        found = built("sparse", shape)(x, keep)
        wanted = min(keep * x.size, np.count_nonzero(x))
        assert abs(len(found["saved.0"]) - wanted) <= 0.02 * wanted, (n, shape, len(found["saved.0"]) / wanted)
        some_or_nothing(built("sparse", shape), x, found)


def test_a_weight_decides_which_blocks_are_kept() -> None:
    """A channel whose errors count more keeps its blocks, though others vary more."""
    shape = (4, 8, 16)
    x = values("normal", (3, *shape)) * np.array([1, 2, 3, 4], np.float32)[:, None, None]
    trip = built("blocks", shape, weighed=True)
    per_channel = 8 * 16 // block_of(trip.x)
    plain, weighed = (
        trip(x, 0.25, np.array(weight, np.float32))["saved.2"][:, 0] // per_channel % 4
        for weight in ([1, 1, 1, 1], [100, 1, 1, 1])
    )
    assert set(plain) == {3} and set(weighed) == {0}


# --- what is not a number ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [name for name in CODECS if name != "bits"])
def test_what_is_not_finite_is_not_hidden(name: str, bad: float) -> None:
    """It comes back as something that is not finite, so that the step that used it is refused."""
    trip = built(name, (4, 8, 8))
    for place in (0, 200, 511):
        x = values("normal", (2, 4, 8, 8))
        x.reshape(-1)[place] = bad
        for keep in (0.25, 1.0) if trip.codec.drops else (1.0,):
            assert not np.isfinite(trip(x, keep)["restored"]).all(), (place, keep)
