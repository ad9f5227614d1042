"""The ways a value crosses to the backward: round trips through the engine, against numpy, for every codec there is."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.codec_case import KEEPS, KINDS, PLANNED, SHAPES, Built, built, values
from tests.support.whole_models import SINGLE, Arrays
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.graph.execute import run
from ttac.passes.graph.expand import expand_all
from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.codecs.block_layout import block_of
from ttac.passes.plan.codecs.codec import row_of

# --- the restored value of each codec, in NumPy -------------------------------------------------------------------------------


def exactly(trip: Built, x: np.ndarray, found: Arrays, keep: float) -> None:
    np.testing.assert_array_equal(found["restored"], x)


def int8(trip: Built, x: np.ndarray, found: Arrays, keep: float) -> None:
    rows, back = (each.reshape(-1, row_of(trip.x)).astype(np.float64) for each in (x, found["restored"]))
    span = np.maximum(rows.max(1), 0) - np.minimum(rows.min(1), 0)
    assert (np.abs(back - rows).max(1) <= span / 510 * 1.001 + 1e-28).all()
    assert (back[rows == 0] == 0).all(), "zeros stay zeros"


def kept_count(keep: float, total: int) -> int:
    """floor(keep * total), as float32 sees it."""
    return int(np.floor(np.float32(keep) * np.float32(total)))


def blocks(trip: Built, x: np.ndarray, found: Arrays, keep: float) -> None:
    """Kept blocks are close, the others their mean; of as many equal stretches of the tensor, each keeps one."""
    size = block_of(trip.x)
    true, back = (each.reshape(-1, size).astype(np.float64) for each in (x, found["restored"]))
    _, _, places, _, single = trip.saved(found)
    assert single == (len(true) if keep == 1 else 0), "element by element all blocks are read alike"
    kept = np.zeros(len(true), bool)
    kept[places[:, 0]] = True
    assert kept.sum() == len(places) == kept_count(keep, len(true))
    largest = np.abs(true).max(1, keepdims=True)
    assert (np.abs(back - true) <= largest / 254 * 1.001 + 1e-28)[kept].all()
    np.testing.assert_allclose(back[~kept], np.broadcast_to(true.mean(1, keepdims=True), true.shape)[~kept],
                               rtol=1e-5, atol=1e-6 * float(largest.max()))  # fmt: skip
    stretches = np.arange(len(places) + 1) * len(true) // max(len(places), 1)
    assert (stretches[:-1] <= places[:, 0]).all() and (places[:, 0] < stretches[1:]).all()


def some_or_nothing(trip: Built, x: np.ndarray, found: Arrays) -> np.ndarray:
    """Whether each element was kept; every one is itself or zero."""
    back = found["restored"]
    assert ((back == x) | (back == 0)).all()
    kept: np.ndarray = back != 0
    dropped, there = np.abs(x[~kept]), np.abs(x[kept])
    assert there.min(initial=math.inf) >= dropped.max(initial=0), "the largest are kept"
    return kept


def sparse(trip: Built, x: np.ndarray, found: Arrays, keep: float) -> None:
    """Exact quantile on small tensors; elements equal to the threshold are dropped."""
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


def channels(trip: Built, x: np.ndarray, found: Arrays, keep: float) -> None:
    """Kept channels are themselves, the others their mean over the batch; which ones does not depend on the values."""
    kept, places, _ = trip.saved(found)
    count = x.shape[1]
    assert len(set(places)) == len(places) == max(count - int(np.floor((1 - keep) * count + 1e-4)), 1)
    np.testing.assert_array_equal(kept, x[:, places])
    expected = np.broadcast_to(x.mean((0, *range(2, x.ndim)), keepdims=True, dtype=np.float64), x.shape).copy()
    expected[:, places] = x[:, places]
    np.testing.assert_allclose(found["restored"], expected, rtol=1e-5, atol=1e-6 * float(np.abs(x).max()))
    other = trip(x[::-1] + 1, keep)
    np.testing.assert_array_equal(trip.saved(other)[1], places)


CASES: dict[str, Callable[[Built, np.ndarray, Arrays, float], None]] = {
    "dense": exactly, "bits": exactly, "int8": int8, "blocks": blocks, "levels": blocks, "sparse": sparse,
    "topk": topk, "channels": channels,
}  # fmt: skip


def promised_slack(trip: Built, n: int, x: np.ndarray) -> float:
    """Bytes above the promise that are none of the values'.

    They are a byte a sample for the last bits, the shape of `topk`, and places and means of `channels`.
    """
    return {"bits": n, "sparse": n + 4, "topk": 8 * x.ndim, "channels": 12 * x.shape[1] + 1e-3}.get(
        trip.codec.name, 1e-6
    )


def test_every_codec_has_a_case() -> None:
    assert set(CASES) == set(CODECS)
    for codec in CODECS.values():
        assert codec.is_exact == (CASES[codec.name] is exactly)


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("name", list(CODECS))
def test_a_round_trip(name: str, shape: str) -> None:
    """Any number of samples up to the planned, any share, any kind of values: the error stated, in the bytes promised."""
    codec = CODECS[name]
    trip_of = ir.val("x", SINGLE, ["N", *SHAPES[shape]])
    if name in ("blocks", "levels") and not block_of(trip_of):
        return
    trip = built(name, SHAPES[shape])
    for kind in KINDS:
        for n in (1, 3, PLANNED):
            x = values(kind, (n, *SHAPES[shape]))
            x = x > 0 if name == "bits" else x
            for keep in KEEPS if codec.drops else (1.0,):
                found = trip(x, keep)
                CASES[name](trip, x, found, keep)
                size = sum(tensor.nbytes for tensor in trip.saved(found))
                assert size <= n * codec.bytes(trip.x, keep) + promised_slack(trip, n, x), (kind, n, keep)


def test_rows_too_short_for_blocks() -> None:
    for shape, size in {(4, 8, 8): 64, (3, 5, 7): 35, (5, 16): 16, (2, 40, 40): 80, (2, 112, 112): 112, (3, 2, 2): 0,
                        (2, 56, 56): 56, (7, 7, 7): 49, (8, 300): 60}.items():  # fmt: skip
        assert block_of(ir.val("x", SINGLE, ["N", *shape])) == size, shape


def distributed(kind: str, size: tuple[int, ...]) -> np.ndarray:
    """float32 of `size` by a law."""
    random = np.random.default_rng(0)
    x = random.normal(size=size)
    laws: dict[str, Callable[[], np.ndarray]] = {
        "normal": lambda: x,
        "relu": lambda: np.maximum(x + 0.5, 0),
        "uniform": lambda: random.uniform(-1, 1, size),
        "heavy tails": lambda: random.standard_cauchy(size),
        "uneven": lambda: x * 10.0 ** random.uniform(-2, 2, (1, size[1], 1, 1)),
        "few distinct": lambda: x.round(3),
        # Every column of a map has its own scale: samples must not all fall on one.
        "lines": lambda: x * (1 + np.arange(size[-1])),
    }
    return laws[kind]().astype(np.float32)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["normal", "relu", "uniform", "heavy tails", "uneven", "few distinct", "lines"])
def test_a_sampled_threshold_keeps_what_is_asked_for(kind: str, keep: float) -> None:
    """Within 2 % of the asked count on tensors of 64k elements and more, however they are distributed."""
    for n, shape in ((2, (32, 64, 64)), (1, (16, 64, 64)), (4, (65, 33, 31))):
        x = distributed(kind, (n, *shape))
        found = built("sparse", shape)(x, keep)
        wanted = min(keep * x.size, np.count_nonzero(x))
        assert abs(len(found["saved.0"]) - wanted) <= 0.02 * wanted, (n, shape, len(found["saved.0"]) / wanted)
        some_or_nothing(built("sparse", shape), x, found)


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.125, 0.3])
def test_every_channel_and_sample_keeps_its_part(keep: float) -> None:
    """Blocks at equal distances would all fall on the same channels where their number divides the layout's."""
    shape, n = (16, 16, 16), 8
    trip = built("blocks", shape)
    places = trip(values("normal", (n, *shape)), keep)["saved.2"][:, 0]
    blocks = 16 * 16 // block_of(trip.x)
    channels = np.bincount(places // blocks % 16, minlength=16) / (n * blocks)
    samples = np.bincount(places // (16 * blocks), minlength=n) / (16 * blocks)
    assert np.abs(channels - keep).max() < 0.2 and np.abs(samples - keep).max() < 0.05


# --- values that are not finite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [name for name in CODECS if name != "bits"])
def test_values_that_are_not_finite_stay_visible(name: str, bad: float) -> None:
    """The restored value is not finite, so that the step is rejected."""
    trip = built(name, (4, 8, 8))
    for place in (0, 200, 511):
        x = values("normal", (2, 4, 8, 8))
        x.reshape(-1)[place] = bad
        for keep in (0.25, 1.0) if trip.codec.drops else (1.0,):
            assert not np.isfinite(trip(x, keep)["restored"]).all(), (place, keep)


# --- bits -------------------------------------------------------------------------------------------------------------


def test_bits_survive_any_size() -> None:
    for shape in (["N", 3, 5, 7], ["N", 64], ["N", 1], ["N", 24], [3, 5], [9], ["N", 8, 8, 8]):
        mask = ir.val("mask", ir.DataType.BOOL, shape)
        graph = ir.Graph([mask], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="bits")
        op = Builder(graph, "test")
        packed = op.PackBits(mask, name="packed")
        restored = op.UnpackBits(
            packed, shape=[size if isinstance(size, int) else -1 for size in shape], name="restored"
        )
        graph.outputs.extend([packed, restored])
        assert [str(size) for size in restored.shape] == [str(size) for size in shape]
        model = expand_all(ir.Model(graph, ir_version=8))
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        for batch in (1, 2, 11):
            given = [size if isinstance(size, int) else batch for size in shape]
            for fill in (0.0, 0.5, 1.0):
                x = np.random.default_rng(batch).random(given) < fill
                found = run(model, {"mask": x})
                np.testing.assert_array_equal(found["restored"], x)
                rows = batch if shape[0] == "N" else 1
                expected = np.packbits(x.reshape(rows, -1), axis=1, bitorder="little")
                np.testing.assert_array_equal(found["packed"], expected)
