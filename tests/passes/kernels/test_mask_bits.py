"""Masks that the forward keeps for the backward with one bit an element."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.passes.kernels.test_depthwise_chains import linked, results
from ttac.passes.kernels.linked_graphs import LinkedGraphs
from ttac.passes.kernels.mask_bits import pack_masks

MAP, VECTOR, MASK = "float[2,16,6,6]", "float[16]", "bool[2,16,6,6]"
FORWARD = f"""forward ({MAP} x1, {MAP} dy, {VECTOR} s1, {VECTOR} b1) =>
    ({MAP} y, {VECTOR} m, {VECTOR} v, {MASK} mask) {{
    y, m, v, mask = ttac.kernels.NormForward <block = 1, act = "relu"> (x1, s1, b1, dy)
}}"""
BACKWARD = f"""backward ({MAP} dy, {MAP} x1, {VECTOR} s1, {VECTOR} m, {VECTOR} v, {MASK} mask) =>
    ({MAP} dx, {VECTOR} ds, {VECTOR} db, {MAP} du) {{
    dx, ds, db, du = ttac.kernels.NormBackward <block = 1, act = "relu"> (dy, x1, s1, , m, v, mask)
}}"""
READ = {"y", "dx", "ds", "db", "du"}


def step(forward: str = FORWARD, backward: str = BACKWARD) -> LinkedGraphs:
    return linked(forward=forward, backward=backward)


def kept(graphs: LinkedGraphs) -> list[ir.DataType | None]:
    """Types of the outputs of the forward that no one but the backward reads."""
    outputs = graphs.models["forward"].graph.outputs
    return [value.dtype for value in outputs if value.name not in {*READ, "m", "v"}]


def test_a_mask_crosses_to_the_backward_in_bits() -> None:
    before, graphs = results(step().models), step()
    pack_masks(graphs, READ)
    graphs.tidy(READ)
    assert kept(graphs) == [ir.DataType.UINT8]
    after = results(graphs.models)
    assert all(np.array_equal(after[name], before[name]) for name in READ)


def test_a_mask_that_others_read_stays() -> None:
    for graphs, outside in (
        (step(), {"mask"}),
        (step(backward=BACKWARD.replace("    dx", "    z = Not(mask)  dx", 1)), set()),
    ):
        pack_masks(graphs, READ | outside)
        assert kept(graphs) == [ir.DataType.BOOL]


def test_a_mask_with_padding_in_blocks_stays() -> None:
    graphs = step(*(text.replace("[2,16,", "[2,24,").replace("[16]", "[24]") for text in (FORWARD, BACKWARD)))
    pack_masks(graphs, READ)
    assert kept(graphs) == [ir.DataType.BOOL]
