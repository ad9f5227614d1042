"""Which norms of a model are adapted: recognised ones, and ones inserted where the export folded them away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ttac import methods
from ttac.errors import UnsupportedError
from ttac.options import ALL, CompileOptions, untrainable
from ttac.passes.adapt.adapt_norms import has_positions
from ttac.passes.norms import calibration
from ttac.passes.norms.drift import drifts
from ttac.passes.norms.insert import insert_norms
from ttac.passes.norms.norm_choice import decide
from ttac.passes.norms.norm_sites import NormSite, find_norms
from ttac.passes.norms.selectors import selected_sites, wants_ranking
from ttac.passes.quantize.modules import Int8Modules, quantize
from ttac.passes.quantize.quantized_files import grids_of, is_quantized, lift
from ttac.settings import QUANTIZATION, refuse_unused
from ttac.spec import Method

Say = Callable[[str], None]
ROLES = ("scale", "bias", "mean", "var")


@dataclass(frozen=True)
class Samples:
    """Calibration samples [n, ...] float32, or none."""

    array: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one sample, None if there are no samples."""
        return None if self.array is None else self.array.shape[1:]

    def few(self, count: int, x: ir.Value) -> np.ndarray:
        """`count` samples for the input `x`: of the calibration data, or standard normal ones."""
        if self.array is not None and len(self.array) >= count:
            return np.ascontiguousarray(self.array[:count])
        assert x.shape is not None
        shape = [int(size) for size in x.shape[1:]]  # type: ignore[arg-type]
        return np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32)


def samples_of(asked: CompileOptions, model: ir.Model, say: Say) -> Samples:
    """The calibration samples that `asked` names, checked against the model's input."""
    if asked.calibration is None:
        return Samples()
    x = model.graph.inputs[0]
    stated = [size if isinstance(size, int) else None for size in (x.shape or ())][1:]
    shape = asked.shape or calibration.sample_shape(asked.calibration) or tuple(size or 0 for size in stated)
    return Samples(calibration.read(asked.calibration, _bound(shape, stated), asked.pixels, say))


def _bound(shape: Sequence[int], stated: Sequence[int | None]) -> tuple[int, ...]:
    """`stated` by the model, its open dimensions taken from `shape`.

    Raises UnsupportedError for one that stays open: the images of a folder do not tell.
    """
    given = list(shape) if len(shape) == len(stated) else [0] * len(stated)
    bound = tuple(size or other for size, other in zip(stated, given, strict=True))
    if not all(bound):
        raise UnsupportedError(
            f"the model leaves the shape of a sample open: {list(stated)}", hint="state it: `--shape 3x224x224`"
        )
    return bound


def lifted(asked: CompileOptions, source: ir.Model, say: Say) -> tuple[CompileOptions, ir.Model]:
    """A file that is 8-bit already as a float model with its grids noted down; then its layers stay 8-bit.

    Raises UnsupportedError for weights that are to be trained, and for 8-bit layers in a form that has no meaning.
    """
    if not is_quantized(source):
        return asked, source
    if asked.train == ALL:
        raise untrainable("`--train all`, on a file that is 8-bit already")
    model, count = lift(source)
    if not count:
        say("the weights in the file are in 8 bits, its activations are not: all is taken as float32")
        return asked, model
    say(f"the file is 8-bit already: its {count} grids are kept")
    defaults = {option.name: option.default for option in QUANTIZATION}
    return replace(asked, quantize="int8", settings={**defaults, **asked.settings}), model


def choose_sites(model: ir.Model, asked: CompileOptions, samples: Samples, say: Say) -> list[NormSite]:
    """The sites to adapt, norms inserted in place where that was decided; empty for a method that adapts nothing.

    Raises UnsupportedError when the method needs norms and there are none, or none that it could do anything with.
    """
    if not asked.method.adapts:
        return []
    found = find_norms(model)
    chosen = decide(found, asked.norms, has_calibration=samples.array is not None)
    say(chosen.because)
    sites = list(chosen.sites)
    if chosen.inserted:
        assert samples.array is not None
        values = [candidate.value for candidate in chosen.inserted]
        statistics = calibration.statistics(model, samples.array, values, asked.batch)
        sites += insert_norms(model, chosen.inserted, statistics)
    if not asked.method.trains:
        sites = with_statistics(sites, asked.method)
    sites = selected(model, in_graph_order(model, sites), asked.train, samples, say)
    if not sites:
        where = f"`--train {asked.train}`"
        raise UnsupportedError("no norm is left to adapt", where=where, hint="`ttac inspect` lists them")
    refuse_single_values(sites, asked)
    return with_own_statistics(sites, asked, say)


def quantize_frozen(asked: CompileOptions, model: ir.Model, sites: Sequence[NormSite], samples: Samples) -> Int8Modules:
    """The layers of `model` as 8-bit modules, in place, where `--quantize` asks for it; otherwise nothing changes."""
    if asked.quantize is None:
        return Int8Modules(list(sites))
    trains = asked.method.trains
    return quantize(model, sites, samples.array, asked.target, asked.settings, grids_of(model), trains=trains)


def selected(model: ir.Model, sites: Sequence[NormSite], selector: str, samples: Samples, say: Say) -> list[NormSite]:
    """The sites that `--train` names (`ttac.passes.norms.selectors`), with how far each drifts where that was asked.

    Raises UsageError for a selector that fits nothing, UnsupportedError for `auto` without calibration data.
    """
    if not wants_ranking(selector):
        return selected_sites(sites, selector, lambda sites: [])
    if samples.array is None:
        raise UnsupportedError(
            "`auto` chooses the norms that drift most on disturbed source samples, and there are none",
            where=f"`--train {selector}`",
            hint="give unlabelled source samples, `--calibration PATH`, or choose yourself: `--train first:30%`",
        )
    found = drifts(model, sites, samples.array)
    ranked = [replace(site, drift=drift) for site, drift in zip(sites, found, strict=True)]
    taken = selected_sites(ranked, selector, lambda sites: found)
    share = sum(s.channels * s.spatial for s in taken) / max(1, sum(s.channels * s.spatial for s in sites))
    farthest = ", ".join(f"{s.name} {s.drift:.2g}" for s in sorted(taken, key=lambda s: -(s.drift or 0))[:4])
    say(f"{len(taken)} of {len(sites)} norms adapt, which see {share:.0%} of the values; drift most: {farthest}")
    return taken


def refuse_single_values(sites: Sequence[NormSite], asked: CompileOptions) -> None:
    """Raise UnsupportedError for a batch of one where a norm would take the statistics of a single value.

    It would subtract the value from itself: the model's output would no longer depend on its input.
    """
    single = [site.name for site in sites if site.kind == "batch" and site.spatial == 1]
    if asked.batch > 1 or not single or asked.method.statistics(asked.settings).needs != "batch":
        return
    mixed = any(option.name == "statistics" for option in asked.method.options)
    raise UnsupportedError(
        "a batch of one sample leaves norms that see one value per channel nothing to take statistics of",
        where=", ".join(f"`{name}`" for name in single[:5]),
        hint="plan for more, `--batch 2`" + (", or mix in the source, `--set statistics=blend`" if mixed else ""),
    )


def with_own_statistics(sites: Sequence[NormSite], asked: CompileOptions, say: Say) -> list[NormSite]:
    """The sites, for statistics of each sample only those where a sample has some: more than one value per channel.

    Raises UnsupportedError if none is left, UsageError for a setting of single sites that fits none of them.
    """
    kept = list(sites)
    if asked.method.statistics(asked.settings).needs == "sample":
        kept = [site for site in sites if has_positions(site)]
        left = [site.name for site in sites if not has_positions(site)]
        if left:
            what = "a channel of one sample is a single value there, which has no statistics"
            if not kept:
                where = ", ".join(f"`{name}`" for name in left[:5])
                raise UnsupportedError(what, where=where, hint=f"methods that adapt them: {_methods_that_train()}")
            say(f"{len(left)} norms keep the source's statistics ({', '.join(left[:5])}): {what}")
    refuse_unused(asked.settings, [site.name for site in kept])
    return kept


def with_statistics(sites: Sequence[NormSite], method: Method) -> list[NormSite]:
    """The batch norms among the sites, for a method that changes nothing but their statistics.

    Raises UnsupportedError, naming the methods that fit, if there are none.
    """
    kept = [site for site in sites if site.kind == "batch"]
    if not kept:
        kinds = ", ".join(sorted({site.kind for site in sites}))
        raise UnsupportedError(
            f"`{method.name}` adapts the statistics of batch norms, and the model has {kinds} norms",
            where=f"`--method {method.name}`",
            hint=f"methods that train scale and bias fit every norm: {_methods_that_train()}",
        )
    return kept


def _methods_that_train() -> str:
    return ", ".join(f"`{name}`" for name in methods.that_train())


def in_graph_order(model: ir.Model, sites: Sequence[NormSite]) -> list[NormSite]:
    """The sites in the order their nodes run."""
    position = {node: index for index, node in enumerate(model.graph)}
    return sorted(sites, key=lambda site: position[site.node])


def name_parameters(model: ir.Model, sites: Sequence[NormSite]) -> None:
    """Give every site of the plain graph its own initializers, in place: `<site>.scale`, `.bias`, `.mean`, `.var`."""
    nodes = {str(node.name): node for node in model.graph}
    wanted = {f"{site.name}.{role}" for site in sites for role in ROLES}
    for name in sorted(wanted & set(model.graph.initializers)):
        shared = model.graph.initializers.pop(name)
        shared.name = f"{name}.source"
        model.graph.register_initializer(shared)
    for site in sites:
        node = nodes[str(site.node.name)]
        for position, role in enumerate(site.parameters, start=1):
            _own_initializer(model.graph, node, position, f"{site.name}.{role}")


def _own_initializer(graph: ir.Graph, node: ir.Node, position: int, name: str) -> None:
    old = node.inputs[position]
    assert old is not None and old.const_value is not None
    own = ir.val(name, const_value=ir.tensor(old.const_value.numpy(), name=name))
    node.replace_input_with(position, own)
    if not old.uses():
        graph.initializers.pop(str(old.name), None)
    graph.register_initializer(own)
