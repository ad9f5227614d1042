"""`levels`: blocks read as two levels, where a gradient is zero and where it is not; against numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.kept_net import kept_net
from tests.support.whole_models import SINGLE, Arrays, spelled
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.graph.execute import run
from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.codecs.block_layout import block_of
from ttac.passes.plan.codecs.codec import KeepRatio


@dataclass(frozen=True)
class Levels:
    """The expected results of the readers of `levels`, in NumPy: x and g as blocks [N, C, blocks, elements]."""

    x: np.ndarray
    g: np.ndarray
    places: np.ndarray
    scale: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """Whether each block was, [N, C, blocks]."""
        found = np.zeros(self.x.shape[:3], bool)
        found.reshape(-1)[self.places] = True
        return found

    def rounded(self) -> np.ndarray:
        """Kept blocks as they come back, the others as zeros."""
        step = np.zeros(self.x.shape[:3])
        step.reshape(-1)[self.places] = self.scale
        steps = np.rint(self.x / np.where(step, step, 1)[..., None])
        return np.where(self.kept[..., None], steps * step[..., None], 0)

    def fitted(self) -> tuple[np.ndarray, np.ndarray]:
        """Rise and variance within the blocks, [C], from every block that is looked at."""
        every = max(1, len(self.places) * 16 // self.kept.size)
        seen = np.zeros(self.kept.shape, bool)
        seen.reshape(-1)[self.places[::every]] = True
        passes = (self.g != 0).astype(float)
        centred = passes - passes.mean(3, keepdims=True)
        away = np.where(seen[..., None], self.rounded() - self.x.mean(3, keepdims=True), 0)
        fit = np.where(seen[..., None], centred**2, 0).sum((0, 2, 3))
        count = seen.sum((0, 2)) * self.x.shape[3]
        return (away * (passes - 1)).sum((0, 2, 3)) / (fit + 4), (away**2).sum((0, 2, 3)) / np.maximum(count, 1)

    def stand_in(self) -> np.ndarray:
        """Every block as two levels about its mean."""
        passes = self.g != 0
        rise = self.fitted()[0][None, :, None, None]
        found: np.ndarray = self.x.mean(3, keepdims=True) + rise * (passes - passes.mean(3, keepdims=True))
        return found

    def dot(self) -> np.ndarray:
        """sum of g*x, [C], with each kept element in its place."""
        found: np.ndarray = (self.g * np.where(self.kept[..., None], self.rounded(), self.stand_in())).sum((0, 2, 3))
        return found

    def lengthened(self) -> np.ndarray:
        """The stand-in brought to the variance of x, at most four times its own."""
        x = self.stand_in()
        centre = x.mean((0, 2, 3), keepdims=True)
        between = ((self.x.mean(3) - centre[..., 0]) ** 2).mean((0, 2))
        _, within = self.fitted()
        told = np.minimum(((x - centre) ** 2).mean((0, 2, 3)) - between, within)
        longer = np.clip((between + within) / (between + told), 1, 4)
        found: np.ndarray = centre + (x - centre) * longer[None, :, None, None]
        return found


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.9])
@pytest.mark.parametrize("shape", [(6, 8, 8), (3, 5, 7), (16, 16, 16)])
def test_two_levels_a_block(shape: tuple[int, ...], keep: float) -> None:
    """Where g is zero and where it is not: in the sum of g*x, and in x*factor + offset (+ an added tensor)."""
    codec, n = CODECS["levels"], 9
    random = np.random.default_rng(len(shape) + shape[0])
    values = (random.normal(size=(n, *shape)) + random.normal(size=(1, shape[0], 1, 1))).astype(np.float32)
    g = np.where(values + random.normal(size=values.shape) > 0.5, random.normal(size=values.shape), 0)
    feeds: Arrays = {
        "x": values, "g": g.astype(np.float32), "factor": random.normal(size=shape[0]).astype(np.float32),
        "offset": random.normal(size=shape[0]).astype(np.float32), "plus": random.normal(size=values.shape).astype(np.float32),
    }  # fmt: skip
    given = {key: ir.val(key, SINGLE, ["N", *shape] if x.ndim > 1 else [shape[0]]) for key, x in feeds.items()}
    scalars = ir.val("keep", SINGLE, []), ir.val("least", SINGLE, [])
    wanted = KeepRatio(*scalars)
    graph = ir.Graph([*given.values(), *scalars], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="levels")
    op = Builder(graph, "test")
    x, factor, offset = given["x"], given["factor"], given["offset"]
    crossing = list(codec.encode(op, x, wanted))
    assert codec.estimate is not None
    known = [*crossing, *codec.estimate(op, crossing, x, given["g"])]
    affine = codec.readers["ChannelAffine"]
    made = {
        "places": crossing[2], "scale": crossing[1], "dot": codec.readers["ChannelDot"](op, known, x, given["g"]),
        "affine": affine(op, known, x, factor, offset), "added": affine(op, known, x, factor, None, given["plus"]),
    }  # fmt: skip
    for title, value in made.items():
        graph.outputs.append(op.Identity(value, name=f"{title}.out", like=value))
    read = run(spelled(ir.Model(graph, ir_version=8)),
               {**feeds, "keep": np.array(keep, np.float32), "least": np.zeros((), np.float32)})  # fmt: skip
    split = (n, shape[0], -1, block_of(x))
    expected = Levels(values.astype(float).reshape(split), feeds["g"].astype(float).reshape(split),
                      read["places.out"][:, 0], read["scale.out"].astype(float))  # fmt: skip
    np.testing.assert_allclose(read["dot.out"], expected.dot(), rtol=1e-4, atol=1e-3)
    long = expected.lengthened().reshape(values.shape)
    column = (slice(None), None, None)
    for title, plain in (("affine", feeds["offset"][column]), ("added", feeds["plus"])):
        np.testing.assert_allclose(read[f"{title}.out"], long * feeds["factor"][column] + plain, rtol=1e-4, atol=1e-4)


def test_the_last_norm_learns_from_its_levels(tmp_path: Path) -> None:
    """In the halves of a net: the gradient of the scale before the loss, whose g no other norm's levels enter."""
    net = kept_net("levels", 0.25, tmp_path)
    joint, halves, exact, feeds = net.joint, net.halves, net.exact, net.feeds
    forward, plain = (run(spelled(half.forward), feeds) for half in (halves, exact))
    found = run(spelled(halves.backward), {**feeds, **forward})
    last, mask = "d", "s.positive"  # the input of the last norm, and the Relu before the pool
    x, y = plain[last].astype(float), plain["y"].astype(float)
    p = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    derivative = -p * (np.log(p) - (p * np.log(p)).sum(1, keepdims=True)) / len(y)
    weight = next(v.const_value for v in joint.model.graph.initializers.values() if v.name == "fc.weight")
    assert weight is not None
    g = (derivative @ weight.numpy())[:, :, None, None] / 64 * plain[mask]
    expected = Levels(x.reshape(5, 6, 1, 64), g.reshape(5, 6, 1, 64), forward[f"{last}.levels.places"][:, 0],
                      forward[f"{last}.levels.scale"].astype(float))  # fmt: skip
    r = 1 / np.sqrt(x.var((0, 2, 3)) + 1e-5)
    scale = next(str(gradient.name) for parameter, gradient in zip(joint.parameters, joint.gradients, strict=True)
                 if parameter.name == "last.scale")  # fmt: skip
    np.testing.assert_allclose(found[scale], (expected.dot() - x.mean((0, 2, 3)) * g.sum((0, 2, 3))) * r, rtol=1e-4,
                               atol=1e-6)  # fmt: skip
