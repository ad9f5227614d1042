"""Which norms of a model are adapted: recognised ones, and ones inserted where the export folded them away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ttac import methods
from ttac.errors import UnsupportedError
from ttac.passes import calibration
from ttac.passes.insert import insert_norms
from ttac.passes.last_stage import last_stage
from ttac.passes.norms import NormSite, decide, find_norms, select
from ttac.request import Request
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


def samples_of(asked: Request, model: ir.Model, say: Say) -> Samples:
    """The calibration samples that `asked` names, checked against the model's input."""
    if asked.calibration is None:
        return Samples()
    x = model.graph.inputs[0]
    stated = [size if isinstance(size, int) else None for size in (x.shape or ())][1:]
    shape = asked.shape or calibration.sample_shape(asked.calibration) or tuple(size or 0 for size in stated)
    return Samples(calibration.read(asked.calibration, _bound(shape, stated), say=say))


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


def choose_sites(model: ir.Model, asked: Request, samples: Samples, say: Say) -> list[NormSite]:
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
    sites = list(select(sites, asked.train))
    if not sites:
        where = f"`--train {asked.train}`"
        raise UnsupportedError("no norm is left to adapt", where=where, hint="`ttac inspect` lists them")
    sites = in_graph_order(model, sites)
    refuse_single_values(sites, asked)
    if asked.settings.get("exclude_last_stage") and asked.train == "norms":
        left = last_stage(model, sites)
        say(f"{len(left)} norms of the last stage stay untrained: {', '.join(sorted(left))}")
        sites = [replace(site, trained=site.name not in left) for site in sites]
    return sites


def refuse_single_values(sites: Sequence[NormSite], asked: Request) -> None:
    """Raise UnsupportedError for a batch of one where a norm would take the statistics of a single value.

    It would subtract the value from itself: the model's output would no longer depend on its input.
    """
    single = [site.name for site in sites if site.kind == "batch" and site.spatial == 1]
    if asked.batch > 1 or not single or asked.method.statistics(asked.settings) != "batch":
        return
    mixed = any(option.name == "statistics" for option in asked.method.options)
    raise UnsupportedError(
        "a batch of one sample leaves norms that see one value per channel nothing to take statistics of",
        where=", ".join(f"`{name}`" for name in single[:5]),
        hint="plan for more, `--batch 2`" + (", or mix in the source, `--set statistics=blend`" if mixed else ""),
    )


def with_statistics(sites: Sequence[NormSite], method: Method) -> list[NormSite]:
    """The batch norms among the sites, for a method that changes nothing but their statistics.

    Raises UnsupportedError, naming the methods that fit, if there are none.
    """
    kept = [site for site in sites if site.kind == "batch"]
    if not kept:
        kinds = ", ".join(sorted({site.kind for site in sites}))
        fitting = [name for name in methods.names() if methods.find(name).trains]
        raise UnsupportedError(
            f"`{method.name}` adapts the statistics of batch norms, and the model has {kinds} norms",
            where=f"`--method {method.name}`",
            hint=f"methods that train scale and bias fit every norm: {', '.join(f'`{name}`' for name in fitting)}",
        )
    return kept


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
