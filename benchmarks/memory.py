"""Peak working memory of a method in PyTorch, by the protocol that `ttac.reports.measure` uses for bundles.

Runs in a process of its own: `python -m benchmarks.memory resnet50 8 tent 2`.
"""

from __future__ import annotations

import json
import sys

from ttac.evaluation.plain import peak_of
from ttac.reports.measure import kilobytes


def main() -> None:
    """Measure the method that the command line names, with its defaults, and print it as JSON."""
    network, batch, method, threads = sys.argv[1:]
    import torch

    bare = kilobytes("VmRSS")
    from benchmarks.networks import build
    from benchmarks.peers import restated

    torch.set_num_threads(int(threads))
    model, side = build(network)
    peer = restated(method, model, {})
    print(json.dumps(peak_of(lambda x: peer.step(torch.from_numpy(x)), int(batch), (3, side, side), bare)))


if __name__ == "__main__":
    main()
