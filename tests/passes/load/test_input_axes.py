"""The axis of each input along which the samples lie."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from ttac.passes.load.input_axes import sample_axes

Sizes = list[int | str | None]


@pytest.mark.parametrize(
    ("inputs", "axes"),
    [
        ([["N", 3]], [0]),
        ([["time", "batch", 4]], [1]),
        ([[1, 3]], [0]),
        ([["N", 3], [2, "N", 5], [], [1]], [0, 1, None, None]),
        ([["batch", 3], ["batch", "L"], ["L"]], [0, 0, 0]),
        ([[None, None], [2, None, 128], []], [0, 1, None]),
        ([[4, 3], [2, 4, 5], [4]], [0, 1, None]),
        ([["unk_1", 3], ["unk_2", 2], [3, 3]], [0, 0, None]),
    ],
)
def test_names_and_sizes_give_the_axis(inputs: list[Sizes], axes: list[int | None]) -> None:
    values = [ir.val(f"x{i}", ir.DataType.FLOAT, ir.Shape(sizes)) for i, sizes in enumerate(inputs)]
    assert list(sample_axes(values, {}).values()) == axes
