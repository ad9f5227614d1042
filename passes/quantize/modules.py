"""The 8-bit room: layers and norms that do not adapt become single quantized modules; norms that adapt stay float.

Around an adapted norm, an 8-bit Conv has a float output.  The norm with the method's statistics, the activation and
rounding to 8 bits follow.  Values outside the calibrated range are clipped to its ends.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.errors import UnsupportedError, UsageError
from ttac.passes.graph.places import node_place
from ttac.passes.graph.sample_set import SampleSet
from ttac.passes.norms.norm_sites import NormSite, site_of
from ttac.passes.quantize.fold import fold_norms, pool_first, standardise
from ttac.passes.quantize.grids import GridAssignment, assign_grids
from ttac.passes.quantize.insert_grids import round_to_grids
from ttac.passes.quantize.module_list import Module, list_modules
from ttac.passes.quantize.ranges import Range, ranges
from ttac.spec import Target

FORMS = ("qdq",)
"""Forms of an 8-bit operator: `qdq` is the float operator between DequantizeLinear and QuantizeLinear."""

HEADROOM = 1.5
"""Factor on the range of a layer before an adapted norm: a shift arrives there uncorrected."""


@dataclass(frozen=True)
class Int8Modules:
    """Result of the room: the sites with their current nodes, and every layer with the precision that it runs in."""

    sites: list[NormSite]
    modules: tuple[Module, ...] = ()

    @property
    def summary(self) -> str:
        """`20 modules in 8 bits, 6 before a norm that adapts; 1 in float32: Conv`."""
        whole = [module for module in self.modules if module.runs == "int8"]
        adapting, rest = sum(bool(module.adapts) for module in whole), len(self.modules) - len(whole)
        left = f"; {rest} in float32: {', '.join(sorted({m.operators for m in self.modules if m not in whole}))}"
        return f"{len(whole)} modules in 8 bits, {adapting} before a norm that adapts" + (left if rest else "")

    def table(self) -> list[dict[str, Any]]:
        """Return the modules for a report."""
        rows = [asdict(module) for module in self.modules]
        return [{key: value for key, value in row.items() if key != "node"} for row in rows]


def quantize(
    model: ir.Model,
    sites: Sequence[NormSite],
    samples: np.ndarray | SampleSet | None,
    target: Target,
    settings: Mapping[str, Any],
    known: Mapping[str, Range] | None = None,
    *,
    trains: bool = False,
) -> Int8Modules:
    """Rewrite `model` in place so that the engine of `target` runs its layers in 8 bits.

    Args:
        sites: norms that adapt; no other batch norm stays behind a layer.
        samples: calibration data for all inputs, or float32 [n, ...] for the only input.
        settings: `calibration` ("minmax", "percentile", "entropy") and `percentile`.
        known: ranges by value name that do not come from the data, but from a file that is already 8-bit.
        trains: whether gradients pass through the graph.

    Raises UnsupportedError without calibration data, or if the target lacks a necessary 8-bit kernel. Raises
    UsageError if the data does not determine ranges.
    """
    _refuse_target(model, target)
    given = None if samples is None else SampleSet.of(model, samples)
    data = _usable(given) if given is not None or not known else None
    known = _moved(known or {}, fold_norms(model, {site.node for site in sites}))
    for site in sites:
        if standardise(model, site):
            known.pop(str(site.x.name), None)
        pool_first(site.node)
    common.RemoveUnusedNodesPass()(model)
    measured = ranges(model, data, settings["calibration"], settings["percentile"]) if data is not None else {}
    ends = {**measured, **_widened(measured, sites), **known}
    adapting = {site.node for site in sites if site.kind == "batch"}
    # With gradients, a rounding behind a norm would be one more for them to pass.
    grids = _assign(model, ends, target, () if trains else adapting)
    modules = list_modules(model, grids, {site.x: site.name for site in sites})
    round_to_grids(model, grids, target, adapting, trains=trains)
    return Int8Modules([refreshed(site) for site in sites], tuple(modules))


def _assign(model: ir.Model, ends: Mapping[str, Range], target: Target, norms: Collection[ir.Node]) -> GridAssignment:
    """Assign the grids; raises UnsupportedError for a value without a range."""
    try:
        return assign_grids(model, ends, target, norms)
    except KeyError as error:
        raise _without_data(f"value `{error.args[0]}`, which the file does not round") from error


def _moved(known: Mapping[str, Range], folded: Mapping[str, str]) -> dict[str, Range]:
    """Return the known ranges after folding: the layer's output takes the range of the norm's output."""
    kept = {name: ends for name, ends in known.items() if name not in folded.values()}
    return {folded.get(name, name): ends for name, ends in kept.items()}


def _widened(measured: Mapping[str, Range], sites: Sequence[NormSite]) -> dict[str, Range]:
    """Return the ranges of the adapted norms' inputs, with headroom for a shift."""
    wide = {}
    for site in [site for site in sites if str(site.x.name) in measured]:
        low, high = measured[str(site.x.name)]
        wide[str(site.x.name)] = (low * HEADROOM if low < 0 else low, high * HEADROOM)
    return wide


def refreshed(site: NormSite) -> NormSite:
    """Return the site with the current constants of its node."""
    if site.kind == "batch":
        return replace(site_of(site.node, site.name, inserted=site.inserted), trained=site.trained, drift=site.drift)
    x = site.node.inputs[0]
    assert x is not None
    return replace(site, x=x)


def _refuse_target(model: ir.Model, target: Target) -> None:
    if target.int8_form not in FORMS or not target.int8_operators:
        raise UnsupportedError(
            f"`{target.name}` states no 8-bit operators of its engine",
            where="`--quantize int8`",
            hint="state them in the target's file, `int8_operators = [...]`, or leave the option out",
        )
    lacking = [n for n in model.graph if n.op_type in ("Conv", "Gemm") and n.op_type not in target.int8_operators]
    if lacking:
        raise UnsupportedError(
            f"the engine of `{target.name}` has no 8-bit `{lacking[0].op_type}`",
            where=", ".join(node_place(node) for node in lacking[:3]),
            hint="compile for another `--target`, or leave out `--quantize int8`",
        )


def _without_data(where: str) -> UnsupportedError:
    return UnsupportedError(
        "8-bit numbers need the ranges of the activations, and there is no data to measure them on",
        where=where,
        hint="give a few hundred unlabelled source samples: `--calibration PATH`",
    )


def _usable(samples: SampleSet | None) -> SampleSet:
    if samples is None:
        raise _without_data("`--quantize int8`")
    flat = samples.main.reshape(len(samples), -1)
    if (flat.min(axis=1) == flat.max(axis=1)).all():
        which = "the only sample holds" if len(flat) == 1 else f"all {len(flat)} samples hold"
        raise UsageError(
            f"{which} one value everywhere, which does not determine the ranges of activations",
            where="`--calibration`",
            hint="give a few hundred unlabelled source samples",
        )
    return samples
