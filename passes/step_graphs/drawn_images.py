"""The start of a graph that changes the images of a batch by random numbers: its images, its numbers, and the seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.operators.random_numbers import Numbers, seeded
from ttac.passes.step_graphs.augmentation import image_sizes
from ttac.passes.step_graphs.context import Context, new_graph


@dataclass(frozen=True, kw_only=True)
class DrawnImages:
    """A new graph that reads the model's images.

    Attributes:
        op: builder of the graph; images: the graph's input [n, C, H, W], n at most the batch.
        drawn: random numbers in (0, 1] of each image, [n, numbers].
        seed: state of the random numbers, which moves.
    """

    op: Builder
    images: ir.Value
    drawn: ir.Value
    seed: StateTensor

    @property
    def sizes(self) -> list[int]:
        """Sizes of [n, C, H, W]; the open one is 0."""
        return image_sizes(self.images)


def drawn_images(context: Context, name: str, seed: str, count: int) -> DrawnImages:
    """The start of the graph `name`, with `count` random numbers of each image from the state `seed`."""
    x = context.x
    assert x is not None
    op = new_graph(name, context.opset)
    images = ir.val(str(x.name), dtype=x.dtype, shape=x.shape)
    op.graph.inputs.append(images)
    initial: np.ndarray = seeded(int(context.settings["seed"]))
    numbers = Numbers(op, state_input(op.graph, seed, initial))
    taken = context.batch * count
    with op.at(name):
        every = op.Reshape(numbers.uniform(taken), [context.batch, count])
        drawn = op.Slice(every, [0], op.Shape(images, start=0, end=1), [0])
        following = numbers.following(taken)
    state = StateTensor(name=seed, role="counter", initial=initial, value=numbers.state, next=following)
    return DrawnImages(op=op, images=images, drawn=drawn, seed=state)
