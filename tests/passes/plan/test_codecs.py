"""The ways a value crosses to the backward: round trips through the engine, against numpy, for every codec there is."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.source_models import Weights, norm, saved, source
from tests.support.whole_models import SINGLE, Arrays, normal, samples, sites_of, spelled
from ttac.passes.adapt.adapt_norms import adapt_norms
from ttac.passes.differentiate.joint import differentiate_loss
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.graph.execute import Executable, run
from ttac.passes.graph.expand import expand_all
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.partition.partition import partition
from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.codecs.block_layout import block_of
from ttac.passes.plan.codecs.codec import Codec, KeepRatio, row_of
from ttac.passes.plan.decisions import Decision, KeepRatios, keep_as, nbytes
from ttac.passes.plan.plan import plan_activations
from ttac.spec import BATCH_STATISTICS

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

    def __call__(self, x: np.ndarray, keep: float = 1.0) -> Arrays:
        """Outputs: `saved.0`, ..., `restored`, of any further name what `extra` made."""
        return self.executable({"x": x, "keep": np.array(keep, np.float32)})

    def saved(self, found: Arrays) -> list[np.ndarray]:
        return [found[f"saved.{i}"] for i in range(1 + len(self.codec.parts))]


@cache
def built(name: str, shape: tuple[int, ...]) -> Built:
    """The round trip of the codec `name`."""
    codec = CODECS[name]
    x = ir.val("x", ir.DataType.BOOL if name == "bits" else SINGLE, ["N", *shape])
    keep = ir.val("keep", SINGLE, [])
    graph = ir.Graph([x, keep], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="trip")
    op = Builder(graph, "test")
    saved = list(codec.encode(op, x, KeepRatio(keep, keep) if codec.drops else None))
    assert len(saved) == 1 + len(codec.parts)
    restored = codec.decode(op, saved, x)
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
    "dense": exactly, "bits": exactly, "int8": int8, "blocks": blocks, "levels": blocks, "sparse": sparse,
    "topk": topk,
}  # fmt: skip
KEEPS = (0.0, 0.1, 0.5, 0.93, 1.0)


def promised_slack(trip: Built, n: int, x: np.ndarray) -> float:
    """Bytes above the promise that are none of the values': a byte a sample for the last bits, the shape of `topk`."""
    return {"bits": n, "sparse": n + 4, "topk": 8 * x.ndim}.get(trip.codec.name, 1e-6)


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
def test_every_channel_and_sample_keeps_its_share(keep: float) -> None:
    """Blocks at equal distances would all fall on the same channels where their number divides the layout's."""
    shape, n = (16, 16, 16), 8
    trip = built("blocks", shape)
    places = trip(values("normal", (n, *shape)), keep)["saved.2"][:, 0]
    blocks = 16 * 16 // block_of(trip.x)
    channels = np.bincount(places // blocks % 16, minlength=16) / (n * blocks)
    samples = np.bincount(places // (16 * blocks), minlength=n) / (16 * blocks)
    assert np.abs(channels - keep).max() < 0.2 and np.abs(samples - keep).max() < 0.05


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


# --- what reads a value as it was saved -------------------------------------------------------------------------------

READ_SHAPES = {"maps": (6, 8, 8), "odd maps": (3, 5, 7), "long rows": (2, 40, 40), "sequence": (3, 30)}


def with_means(x: np.ndarray, size: int) -> np.ndarray:
    """Every block of `size` elements as its mean, float64 in the shape of `x`."""
    blocks = x.astype(np.float64).reshape(-1, size)
    return np.broadcast_to(blocks.mean(1, keepdims=True), blocks.shape).reshape(x.shape)


def reading(name: str, operator: str, shape: tuple[int, ...], least: float, **given: bool) -> dict[float, float]:
    """By share, how far the reader of a codec is from what it should give, in float64, over the largest of it.

    That is what the operator gives of the restored value; element by element, of the means where `least`, the share of
    some layer, is below 1; along what stands for a row, brought to the mean square 0.7 (`power`).
    """
    codec, n = CODECS[name], 3
    channels = shape[0]
    feeds: Arrays = {
        "x": values("normal", (n, *shape)), "g": values("uneven", (n, *shape)), "plus": values("relu", (n, *shape)),
        "factor": values("normal", (channels,)), "offset": values("relu", (channels,)) + 1,
        "power": np.full((n, channels, *[1] * len(shape[1:])), 0.7, np.float32),
    }  # fmt: skip
    per_channel = ("factor", "offset")
    sizes = {key: [channels] if key in per_channel else ["N", *x.shape[1:]] for key, x in feeds.items()}
    inputs = {key: ir.val(key, SINGLE, sizes[key]) for key in feeds}
    wanted = KeepRatio(ir.val("keep", SINGLE, []), ir.val("least", SINGLE, []))
    graph = ir.Graph([*inputs.values(), *wanted], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="reader")
    op = Builder(graph, "test")
    x = inputs["x"]
    saved = codec.encode(op, x, wanted)
    if operator == "ChannelDot":
        others = [inputs["g"]]
    elif operator == "Along":
        others = [inputs["g"], inputs["power"]]
    else:
        chosen = [inputs[key] if given.get(key) else None for key in ("offset", "plus")]
        others = [inputs["factor"], *chosen]  # type: ignore[list-item]
    read = codec.readers[operator](op, saved, x, *others)
    assert read.dtype == SINGLE
    for title, value in (("read", read), ("restored", codec.decode(op, saved, x))):
        graph.outputs.append(op.Identity(value, name=title))
    model = spelled(ir.Model(graph, ir_version=8))
    onnx.checker.check_model(ir.to_proto(model))
    found = {}
    for keep in KEEPS if least < 1 else (1.0,):
        result = run(model, {**feeds, "keep": np.array(keep, np.float32), "least": np.array(least, np.float32)})
        back = result["restored"].astype(np.float64)
        if operator == "ChannelAffine" and least < 1:
            back = with_means(feeds["x"], block_of(x))
        column = (slice(None), *[None] * (len(shape) - 1))
        if operator == "ChannelDot":
            expected = (feeds["g"] * back).sum((0, *range(2, back.ndim)))
        elif operator == "Along":
            rows = tuple(range(2, back.ndim))
            square, dot = ((other * back).mean(rows, keepdims=True) for other in (back, feeds["g"]))
            expected = back * dot / square * feeds["power"]
        else:
            expected = back * feeds["factor"][column]
            expected = expected + feeds["offset"][column] if given.get("offset") else expected
            expected = expected + feeds["plus"] if given.get("plus") else expected
        scale = float(np.abs(expected).max())
        found[keep] = np.abs(result["read"] - expected).max() / scale
    return found


READERS = [(name, operator) for name, codec in CODECS.items() for operator in codec.readers]


@pytest.mark.parametrize("shape", list(READ_SHAPES))
@pytest.mark.parametrize(("name", "operator"), READERS)
def test_a_reader_gives_what_the_operator_gives_of_what_stands_for_the_value(
    name: str, operator: str, shape: str
) -> None:
    """ChannelDot, Along, and ChannelAffine with and without an offset and what is added behind it."""
    choices: list[dict[str, bool]] = [{}]
    if operator == "ChannelAffine":
        choices = [{"offset": offset, "plus": plus} for offset in (False, True) for plus in (False, True)]
    for given in choices:
        for least in (0.0, 1.0):
            errors = reading(name, operator, READ_SHAPES[shape], least, **given)
            assert max(errors.values()) <= 2e-5, (given, least, errors)


def test_the_readers_are_tested() -> None:
    assert {operator for _, operator in READERS} == {"ChannelDot", "ChannelAffine", "Along"}


# --- in the halves of a net -------------------------------------------------------------------------------------------

NET = """
net (float[N,6,8,8] x) => (float[N,5] y) {
  c = Conv <pads = [1,1,1,1]> (x, "conv.weight")
  b = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  r = Relu (b)
  d = Conv <pads = [1,1,1,1]> (r, "next.weight")
  e = BatchNormalization (d, "last.weight", "last.bias", "last.running_mean", "last.running_var")
  a = Add (e, r)
  s = Relu (a)
  p = GlobalAveragePool (s)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
}
"""
NET_WEIGHTS: Weights = {
    "conv.weight": (6, 6, 3, 3), "next.weight": (6, 6, 3, 3), **norm("bn", 6), **norm("last", 6), "fc.weight": (5, 6),
    "fc.bias": (5,),
}  # fmt: skip
# What `levels` makes of a value depends on the gradient that reads it.
LOSSY = [name for name, codec in CODECS.items() if not codec.is_exact and codec.estimate is None]


def read_alone(backward: ir.Model, name: str) -> str:
    """Let every ChannelAffine that reads the input `name` read another one, whose name this returns."""
    x = next(value for value in backward.graph.inputs if value.name == name)
    other = ir.val(f"{name}.alone", x.dtype, x.shape)
    backward.graph.inputs.append(other)
    for use in [use for use in x.uses() if use.node.op_type == "ChannelAffine"]:
        use.node.replace_input_with(use.idx, other)
    return str(other.name)


@pytest.mark.parametrize("keep", [0.25, 1.0])
@pytest.mark.parametrize("name", LOSSY)
def test_the_backward_sees_what_the_codec_gives_back(name: str, keep: float, tmp_path: Path) -> None:
    """Its gradients are those of the exact backward, were it given what stands for the values; logits do not change."""
    model = normal(saved(source(NET, NET_WEIGHTS), tmp_path))
    made = adapt_norms(model, sites_of(model), BATCH_STATISTICS, {}, trains=True)
    joint = differentiate_loss(model, model.graph.outputs[0], "entropy", made.parameters)
    batch, n = 64, 5

    def decide(value: ir.Value, half: Set[ir.Node]) -> Decision:
        if value.dtype == ir.DataType.BOOL:
            return keep_as(value, "bits", batch)
        large = value.dtype == SINGLE and nbytes(value, batch) > 16384
        row = keep_as(value, name if large else "dense", batch, "", keep)
        return replace(row, layers=(0,)) if large and CODECS[name].drops else row

    shares = KeepRatios("shares", np.array([keep], np.float32), False)
    plan = plan_activations(joint.model.graph, joint.backward, list(joint.model.graph.inputs), batch, decide, shares)
    halves, exact = (partition(joint.model, [joint.logits], joint.gradients, p) for p in (plan, plan.exactly()))
    assert halves.backward is not None and exact.backward is not None
    lossy = [row for row in plan.decisions if row.how == name]
    assert len(lossy) == 2 and sum(row.how == "bits" for row in plan.decisions) == 2
    feeds = {"x": samples((6, 8, 8), n), **{tensor.name: tensor.initial for tensor in made.state}}
    forward, plain = (run(spelled(half.forward), feeds) for half in (halves, exact))
    np.testing.assert_allclose(forward["y"], plain["y"], rtol=1e-5, atol=1e-6)
    given = dict(plain)
    for row in lossy:
        given[row.value] = built(name, (6, 8, 8))(plain[row.value], keep)["restored"]
        assert np.abs(given[row.value] - plain[row.value]).max() > 0 or name in ("topk", "sparse")
        if CODECS[name].readers and keep < 1:
            given[read_alone(exact.backward, row.value)] = np.float32(with_means(plain[row.value], 64))
    found = run(spelled(halves.backward), {**feeds, **forward})
    expected = run(spelled(exact.backward), {**feeds, **given})
    length = np.sqrt(sum(float((expected[str(g.name)] ** 2).sum()) for g in joint.gradients))
    for gradient in joint.gradients:
        apart = np.linalg.norm(found[str(gradient.name)] - expected[str(gradient.name)])
        assert apart <= 2e-5 * length, gradient.name


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
