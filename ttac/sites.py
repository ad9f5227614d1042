"""The choice of the norms to adapt: norms of the file, and norms inserted where the export folded them away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.learned_outputs import learned_outputs
from ttac.method_fit import methods_that_train, refuse_unread, with_statistics
from ttac.options import ALL, CompileOptions
from ttac.passes.adapt.adapt_norms import has_positions
from ttac.passes.norms import calibration
from ttac.passes.norms.drift import drifts
from ttac.passes.norms.insert import insert_norms
from ttac.passes.norms.norm_choice import decide
from ttac.passes.norms.norm_sites import NormSite, find_norms
from ttac.passes.norms.selectors import selected_sites, wants_ranking
from ttac.settings import refuse_unused
from ttac.source_samples import Samples

Say = Callable[[str], None]


def choose_sites(model: ir.Model, options: CompileOptions, samples: Samples, say: Say) -> list[NormSite]:
    """The sites to adapt, in graph order; norms are inserted into `model` in place.  Empty for a method without norms.

    Raises UnsupportedError if the model has no norm that the method can adapt.
    """
    if not options.method.adapts:
        return []
    measured = samples.known is not None or bool(samples.moments)
    decision = decide(find_norms(model), options.norms, has_calibration=measured)
    say(decision.because)
    sites = list(decision.sites)
    if decision.inserted:
        values = [candidate.value for candidate in decision.inserted]
        if samples.known is not None:
            samples.moments.update(calibration.statistics(model, samples.known, values, options.batch))
        sites += insert_norms(model, decision.inserted, samples.moments)
    if not options.method.trains:
        sites = with_statistics(sites, options.method)
    sites = selected(model, in_graph_order(model, sites), options.train, samples, say)
    if not sites:
        where = f"`--train {options.train}`"
        raise UnsupportedError("no norm is left to adapt", where=where, hint="`ttac inspect` lists them")
    if options.method.loss and options.train != ALL and not options.method.refine:
        refuse_unread(model, sites, list(learned_outputs(options.logits))[1:])
    refuse_single_values(sites, options)
    note_single_samples(sites, options, say)
    return with_own_statistics(sites, options, say)


def selected(model: ir.Model, sites: Sequence[NormSite], selector: str, samples: Samples, say: Say) -> list[NormSite]:
    """The sites that `--train` selects (`ttac.passes.norms.selectors`); the selector `auto` notes the drift of each.

    Raises UsageError for a selector that fits nothing, UnsupportedError for `auto` without calibration data.
    """
    if not wants_ranking(selector):
        return selected_sites(sites, selector, lambda sites: [])
    if samples.known is None:
        raise UnsupportedError(
            "`auto` chooses the norms that drift most on disturbed source samples, and there are none",
            where=f"`--train {selector}`",
            hint="give unlabelled source samples, `--calibration PATH`, or choose yourself: `--train first:30%`",
        )
    if samples.known.main.dtype.kind != "f":
        raise UnsupportedError(
            f"`auto` disturbs the samples, and the model takes `{samples.known.main.dtype}`",
            where=f"`--train {selector}`",
            hint="choose yourself: `--train first:30%`",
        )
    distances = drifts(model, sites, samples.known)
    ranked = [replace(site, drift=drift) for site, drift in zip(sites, distances, strict=True)]
    chosen = selected_sites(ranked, selector, lambda sites: distances)
    fraction = sum(s.channels * s.spatial for s in chosen) / max(1, sum(s.channels * s.spatial for s in sites))
    farthest = ", ".join(f"{s.name} {s.drift:.2g}" for s in sorted(chosen, key=lambda s: -(s.drift or 0))[:4])
    counts = f"{len(chosen)} of {len(sites)} norms adapt, which see {fraction:.0%} of the values"
    say(f"{counts}; drift most: {farthest}")
    return chosen


def refuse_single_values(sites: Sequence[NormSite], options: CompileOptions) -> None:
    """Raise UnsupportedError for a batch of one if a norm takes the statistics of a single value.

    Such a norm subtracts the value from itself: the model's output no longer depends on the input.
    """
    single = [site.name for site in sites if site.kind == "batch" and site.spatial == 1]
    if options.batch > 1 or not single or options.method.statistics(options.settings).needs != "batch":
        return
    mixed = any(option.name == "statistics" for option in options.method.options)
    raise UnsupportedError(
        "a batch of one sample leaves norms that see one value per channel nothing to take statistics of",
        where=", ".join(f"`{name}`" for name in single[:5]),
        hint="plan for more, `--batch 2`" + (", or mix in the source, `--set statistics=blend`" if mixed else ""),
    )


def note_single_samples(sites: Sequence[NormSite], options: CompileOptions, say: Say) -> None:
    """Say that batch norms cannot take the statistics of a batch from a single sample, and the ways out."""
    alone = any(site.kind == "batch" for site in sites) and options.batch == 1
    if alone and options.method.statistics(options.settings).needs == "batch":
        own = any(option.name == "window" for option in options.method.options)
        ways = ("`--set window=16`, " if own else "") + "`--batch 16` or a method of single samples (`ttac methods`)"
        say(f"warning: one sample gives batch norms poor statistics, often worse than the source's; use {ways}")


def with_own_statistics(sites: Sequence[NormSite], options: CompileOptions, say: Say) -> list[NormSite]:
    """The sites; for statistics of each sample, only sites with more than one value of a channel in a sample.

    Raises UnsupportedError if no site is left, UsageError for a setting of single sites that fits no site.
    """
    kept = list(sites)
    if options.method.statistics(options.settings).needs == "sample":
        kept = [site for site in sites if has_positions(site)]
        left = [site.name for site in sites if not has_positions(site)]
        if left:
            reason = "a channel of one sample is a single value there, which has no statistics"
            if not kept:
                where = ", ".join(f"`{name}`" for name in left[:5])
                raise UnsupportedError(reason, where=where, hint=f"methods that adapt them: {methods_that_train()}")
            say(f"{len(left)} norms keep the source's statistics ({', '.join(left[:5])}): {reason}")
    refuse_unused(options.settings, [site.name for site in kept])
    return kept


def in_graph_order(model: ir.Model, sites: Sequence[NormSite]) -> list[NormSite]:
    """The sites in the order their nodes run."""
    position = {node: index for index, node in enumerate(model.graph)}
    return sorted(sites, key=lambda site: position[site.node])
