"""The methods in PyTorch for `ttac bench --against pytorch`, with the same network, settings and batch.

Variants: eager or `torch.compile`, each with dense tensors in the order [N, C, H, W] or [N, H, W, C] (channels_last).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.exporting import export
from benchmarks.networks import NETWORKS, build
from benchmarks.pytorch_peers import NORMS, BatchStatistics, Eata, Sar, Source, Surgeon, Tent
from ttac.errors import UsageError
from ttac.reports.measure import measured_by
from ttac.suggest import did_you_mean

VARIANTS = ("eager", "eager channels_last", "torch.compile", "torch.compile channels_last")
COMPILED = ("source", "bn", "tent")
"""Methods whose forward `torch.compile` takes whole."""
METHODS = ("source", "bn", "tent", "eata", "sar", "surgeon")
ROOT = Path(__file__).resolve().parent.parent


class PyTorch:
    """Steps and memory of the methods in `benchmarks.pytorch_peers`, limited to `methods`, in all `VARIANTS`."""

    name = "PyTorch"

    def __init__(self, methods: Sequence[str] = METHODS) -> None:
        self.methods = methods

    @contextmanager
    def exported(self, models: Sequence[Path]) -> Iterator[list[Path]]:
        """Return the models as files; a model that is no file is a benchmark network, exported to a temporary folder.

        Raises UsageError for a name that is neither a file nor a benchmark network.
        """
        with tempfile.TemporaryDirectory(prefix="ttac-bench-") as folder:
            for model in models:
                if not model.exists() and str(model) not in NETWORKS:
                    hint = did_you_mean(str(model), NETWORKS)
                    raise UsageError("there is no such model or benchmark network", where=f"`{model}`", hint=hint)
            yield [model if model.exists() else export(str(model), Path(folder)) for model in models]

    def steps(
        self, model: Path, manifest: Mapping[str, Any], threads: int
    ) -> dict[str, Callable[[np.ndarray], object]]:
        """Return the same method's step on the network with the name of the file, by variant; empty without both."""
        method = manifest["method"]
        if model.stem not in NETWORKS or method["name"] not in self.methods:
            return {}
        untrained = [position for position, site in enumerate(manifest["sites"]) if not site.get("trained")]
        return {
            variant: variant_step(variant, model.stem, method["name"], threads, method["settings"], untrained)
            for variant in VARIANTS
            if method["name"] in COMPILED or "compile" not in variant
        }

    def memory(self, model: Path, manifest: Mapping[str, Any], threads: int, variant: str) -> Mapping[str, Any] | None:
        """Return `peak` and `loaded` of the step in bytes, measured in a fresh process."""
        arguments = [model.stem, str(manifest["batch"]["planned"]), manifest["method"]["name"], str(threads), variant]
        return measured_by("benchmarks.memory", arguments)


def variant_step(
    variant: str,
    network: str,
    method: str,
    threads: int,
    settings: Mapping[str, Any],
    untrained: Sequence[int] = (),
) -> Callable[[np.ndarray], object]:
    """Return the step of the method on the network in a variant of `VARIANTS`."""
    torch.set_num_threads(threads)
    peer = restated(method, build(network)[0], settings, untrained)
    order = torch.channels_last if "channels_last" in variant else torch.contiguous_format
    peer.model.to(memory_format=order)
    if "compile" in variant:
        peer.model = torch.compile(peer.model, dynamic=False)
    return lambda x: peer.step(torch.from_numpy(x).contiguous(memory_format=order))


def restated(
    method: str,
    model: nn.Module,
    settings: Mapping[str, Any],
    untrained: Sequence[int] = (),
    calibration: torch.Tensor | None = None,
) -> Any:
    """Return the method on the model with the settings of a bundle.

    `untrained` are the positions of norms without training; `calibration` are source samples for the anchor of `eata`.
    """
    if method == "source":
        return Source(model)
    if method == "bn":
        return BatchStatistics(model)
    rate = {"lr": float(settings.get("lr", 1e-3))}
    if method == "tent":
        return Tent(model, lambda trained: torch.optim.Adam(trained, **rate))
    if method == "surgeon":
        return Surgeon(model, probe=int(settings.get("probe_samples", 1)), **rate)
    rate["margin"] = float(settings.get("margin", 0.4))
    if method == "eata":
        anchor = {"fisher": float(settings.get("fisher", 0.0)), "calibration": calibration}
        return Eata(model, redundancy=float(settings.get("redundancy", 0.4)), **anchor, **rate)
    names = [name for name, module in model.named_modules() if isinstance(module, NORMS)]
    return Sar(
        model,
        rho=float(settings.get("rho", 0.05)),
        threshold=float(settings.get("reset_threshold", 0.2)),
        untrained=[names[position] for position in untrained],
        **rate,
    )
