"""Readers of saved values: operators that read a value in the form of its codec."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.codec_case import KEEPS, values, with_means
from tests.support.whole_models import SINGLE, Arrays, spelled
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.graph.execute import run
from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.codecs.block_layout import block_of
from ttac.passes.plan.codecs.codec import KeepRatio

READ_SHAPES = {"maps": (6, 8, 8), "odd maps": (3, 5, 7), "long rows": (2, 40, 40), "sequence": (3, 30)}


def feeds_for(shape: tuple[int, ...], n: int = 3) -> Arrays:
    """Values for all inputs of the readers; one sample of `x` has the given shape."""
    channels = shape[0]
    return {
        "x": values("normal", (n, *shape)), "g": values("uneven", (n, *shape)), "plus": values("relu", (n, *shape)),
        "factor": values("normal", (channels,)), "offset": values("relu", (channels,)) + 1,
        "power": np.full((n, channels, *[1] * len(shape[1:])), 0.7, np.float32),
    }  # fmt: skip


def reader_graph(name: str, operator: str, shape: tuple[int, ...], options: dict[str, bool]) -> tuple[ir.Model, int]:
    """A graph that gives the reader's result and the restored value, and the block size of `x`."""
    per_channel = ("factor", "offset")
    sizes = {key: [shape[0]] if key in per_channel else ["N", *x.shape[1:]] for key, x in feeds_for(shape).items()}
    inputs = {key: ir.val(key, SINGLE, size) for key, size in sizes.items()}
    scalars = ir.val("keep", SINGLE, []), ir.val("least", SINGLE, [])
    ratio = KeepRatio(*scalars)
    graph = ir.Graph([*inputs.values(), *scalars], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="reader")
    op, x, codec = Builder(graph, "test"), inputs["x"], CODECS[name]
    saved = codec.encode(op, x, ratio)
    others = {
        "ChannelDot": [inputs["g"]],
        "Along": [inputs["g"], inputs["power"]],
        "ChannelAffine": [
            inputs["factor"], *(inputs[key] if options.get(key) else None for key in ("offset", "plus"))
        ],
    }[operator]  # fmt: skip
    read = codec.readers[operator](op, saved, x, *others)
    assert read.dtype == SINGLE
    for title, value in (("read", read), ("restored", codec.decode(op, saved, x))):
        graph.outputs.append(op.Identity(value, name=title))
    model = spelled(ir.Model(graph, ir_version=8))
    onnx.checker.check_model(ir.to_proto(model))
    return model, block_of(x)


def expected_of(operator: str, feeds: Arrays, back: np.ndarray, options: dict[str, bool]) -> np.ndarray:
    """The operator on the restored value `back`, in float64."""
    rows = tuple(range(2, back.ndim))
    if operator == "ChannelDot":
        return np.asarray((feeds["g"] * back).sum((0, *rows)))
    if operator == "Along":
        square, dot = ((other * back).mean(rows, keepdims=True) for other in (back, feeds["g"]))
        return np.asarray(back * dot / square * feeds["power"])
    column = (slice(None), *[None] * (back.ndim - 2))
    result = back * feeds["factor"][column]
    result = result + feeds["offset"][column] if options.get("offset") else result
    return np.asarray(result + feeds["plus"] if options.get("plus") else result)


def reading(
    name: str, operator: str, shape: tuple[int, ...], least: float, options: dict[str, bool]
) -> dict[float, float]:
    """Return the relative error of a codec's reader for each keep ratio, against float64.

    The reference is the operator on the restored value.  Where `least`, the smallest keep ratio of a layer, is below 1,
    ChannelAffine reads the block means.  Along scales each row to the mean square 0.7 (`power`).
    """
    feeds = feeds_for(shape)
    model, block = reader_graph(name, operator, shape, options)
    errors = {}
    for keep in KEEPS if least < 1 else (1.0,):
        result = run(model, {**feeds, "keep": np.array(keep, np.float32), "least": np.array(least, np.float32)})
        back = result["restored"].astype(np.float64)
        if operator == "ChannelAffine" and least < 1:
            back = with_means(feeds["x"], block)
        expected = expected_of(operator, feeds, back, options)
        errors[keep] = np.abs(result["read"] - expected).max() / float(np.abs(expected).max())
    return errors


READERS = [(name, operator) for name, codec in CODECS.items() for operator in codec.readers]


@pytest.mark.parametrize("shape", list(READ_SHAPES))
@pytest.mark.parametrize(("name", "operator"), READERS)
def test_a_reader_equals_the_operator_on_the_restored_value(name: str, operator: str, shape: str) -> None:
    """ChannelDot, Along, and ChannelAffine with and without an offset and an added tensor."""
    choices: list[dict[str, bool]] = [{}]
    if operator == "ChannelAffine":
        choices = [{"offset": offset, "plus": plus} for offset in (False, True) for plus in (False, True)]
    for given in choices:
        for least in (0.0, 1.0):
            errors = reading(name, operator, READ_SHAPES[shape], least, given)
            assert max(errors.values()) <= 2e-5, (given, least, errors)


def test_the_readers_are_tested() -> None:
    assert {operator for _, operator in READERS} == {"ChannelDot", "ChannelAffine", "Along"}
