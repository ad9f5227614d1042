"""Peak working memory of a method in PyTorch, by the protocol that `ttac.reports.measure` uses for bundles.

Runs in a fresh process: `python -m benchmarks.memory resnet50 8 tent 2 eager`.
"""

from __future__ import annotations

import json
import sys

from ttac.reports.measure import kilobytes, random_samples, step_memory


def main() -> None:
    """Measure the method on the command line with its defaults, and print the figures as JSON."""
    network, batch, method, threads, variant = sys.argv[1:]
    import torch  # noqa: F401  the bare process holds PyTorch

    bare = kilobytes("VmRSS")
    from benchmarks.networks import GROWING, NETWORKS
    from benchmarks.peers import variant_step

    step = variant_step(variant, network, method, int(threads), {})
    side = (NETWORKS | GROWING)[network][1]
    samples = random_samples(int(batch), (3, side, side))
    # torch.compile compiles for one batch: the warm-up must have the batch of the measured steps.
    print(json.dumps(step_memory(step, samples, bare, few=samples if "compile" in variant else samples[:1])))


if __name__ == "__main__":
    main()
