"""KeepBlocks, SparseNormBackward and masks in bits against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ttac_kernels", reason="needs ttac-kernels (make kernels)")

from tests.support.kernel_session import run
from tests.support.kernel_sparse_case import check_sparse, sparse_case


@pytest.mark.parametrize("first", range(0, 150, 50))
def test_random_cases_agree_with_numpy_in_float64(first: int) -> None:
    for seed in range(first, first + 50):
        check_sparse(sparse_case(seed))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"size": 7}, "its maps are no multiple of the size"),
        ({"size": 256}, "not from 1 to 128"),
        ({"layers": [2]}, "no keep ratio"),
    ],
)
def test_a_save_that_does_not_fit_is_refused(attributes: dict[str, object], message: str) -> None:
    inputs = {"x": np.zeros((1, 16, 4, 16), np.float32), "ratios": np.ones(2, np.float32)}
    with pytest.raises(Exception, match=message):
        run("KeepBlocks", inputs, ["values", "scales", "places", "means"], {"block": 16, "size": 16, **attributes})


@pytest.mark.parametrize("ratio", [-0.5, 1.5, np.nan])
def test_a_keep_ratio_outside_its_range_is_refused(ratio: float) -> None:
    inputs = {"x": np.zeros((1, 16, 4, 16), np.float32), "ratios": np.full(1, ratio, np.float32)}
    with pytest.raises(Exception, match="not between 0 and 1"):
        run("KeepBlocks", inputs, ["values", "scales", "places", "means"], {"block": 16, "size": 16})
