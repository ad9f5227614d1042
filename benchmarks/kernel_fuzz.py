"""`python -m benchmarks.kernel_fuzz --shapes 10000`: native operators on random shapes, compared with NumPy in float64.

The cases have odd sizes, maps of one pixel, single samples, NaN, infinities and denormals.  `--only 137` runs one case
again.  The exit status is 1 if a case fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from tests.support.kernel_byte_case import check_bytes
from tests.support.kernel_depthwise_case import check_depthwise, check_input_gradient
from tests.support.kernel_layer_case import check_activation, check_layer, check_softmax, layer_case
from tests.support.kernel_map_case import check_interleave, check_pool, pool_case
from tests.support.kernel_norm_case import check_norm, norm_case
from tests.support.kernel_sparse_case import check_sparse, sparse_case
from tests.support.kernel_weight_case import check_adam, check_reorder, check_rows, check_weight_gradient

CHECKS: dict[str, Callable[[int], None]] = {
    "norm": lambda seed: check_norm(norm_case(seed)),
    "pool": lambda seed: check_pool(pool_case(seed)),
    "interleave": check_interleave,
    "input-gradient": check_input_gradient,
    "depthwise": check_depthwise,
    "layer": lambda seed: check_layer(layer_case(seed)),
    "activation": check_activation,
    "softmax": check_softmax,
    "weight-gradient": check_weight_gradient,
    "reorder": check_reorder,
    "rows": check_rows,
    "adam": check_adam,
    "bytes": check_bytes,
    "sparse": lambda seed: check_sparse(sparse_case(seed)),
}
"""Name of the operators -> the check of one seed."""


def main() -> int:
    """Run the cases, and print one line for each group of operators."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_fuzz", description=__doc__)
    parser.add_argument("--shapes", type=int, default=1000, help="random cases of each group of operators")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="number of a single case")
    parser.add_argument("--operators", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.shapes) if options.only is None else [options.only]
    return int(any([failures(name, seeds) for name in options.operators]))


def failures(name: str, seeds: range | list[int]) -> int:
    """Return the number of failed cases; the first five are printed."""
    start = time.perf_counter()
    found = [problem for problem in (problem_of(name, seed) for seed in seeds) if problem]
    print(*found[:5], sep="\n", end="\n" if found else "")
    print(f"{name}: {len(seeds)} cases, {len(found)} failures, {time.perf_counter() - start:.0f} s", flush=True)
    return len(found)


def problem_of(name: str, seed: int) -> str:
    """Return a sentence on the failure of a case; empty if the case passes."""
    try:
        CHECKS[name](seed)
    except AssertionError as error:
        return f"{name} case {seed}: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
