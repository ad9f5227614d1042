"""Peak working memory of a method in PyTorch, by the protocol that `ttac.reports.measure` uses for bundles.

Runs in a fresh process: `python -m benchmarks.memory resnet50 8 tent 2`.
"""

from __future__ import annotations

import json
import sys

from ttac.reports.measure import kilobytes, random_samples, step_memory


def main() -> None:
    """Measure the method on the command line with its defaults, and print the figures as JSON."""
    network, batch, method, threads = sys.argv[1:]
    import torch

    bare = kilobytes("VmRSS")
    from benchmarks.networks import build
    from benchmarks.peers import restated

    torch.set_num_threads(int(threads))
    model, side = build(network)
    peer = restated(method, model, {})
    samples = random_samples(int(batch), (3, side, side))
    print(json.dumps(step_memory(lambda x: peer.step(torch.from_numpy(x)), samples, bare)))


if __name__ == "__main__":
    main()
