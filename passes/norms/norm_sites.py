"""Recognise the norms of a normalised model.

Nothing changes here. A recogniser never half-matches: it lists each node that it rejects with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.layer_names import FOLDABLE, FOLDED
from ttac.passes.graph.places import node_place, value_place
from ttac.passes.graph.shapes import sample_size
from ttac.passes.normalise.affine_nodes import KIND, XHAT
from ttac.passes.normalise.norm_patterns import standardisation
from ttac.passes.norms.folded_norms import Candidate, Rejection, folded_layers

KINDS = {"LayerNormalization": "layer", "InstanceNormalization": "instance"}
"""Kinds of norm by operator."""


@dataclass(frozen=True, eq=False, kw_only=True)
class NormSite:
    """A norm whose parameters are constant inputs of one node: scale second, then bias, mean and variance.

    Attributes:
        kind: "batch" (y = (x - mean)/sqrt(var + eps)*scale + bias, all four [C]); "layer", "group", "instance", "rms"
            (no bias), which compute their own statistics; or "affine", without statistics (a folded batch norm's
            scale and bias).
        x, y: input and output of the node; [N, C, ...] but for "layer" and "rms".
        scale, bias: float32, [C] but for "layer" and "rms", which have the shape of their axes; bias may be absent.
        mean, var: statistics of the source, None for all kinds but "batch".
        spatial: elements of one channel of one sample; 1 for [N, C], 16 for [16*N, C].
        inserted: whether ttac inserted it behind a layer that had lost its norm.
        trained: whether a method that trains norms trains this norm.
        drift: how far its input moves under disturbances of the model's input (`ttac.passes.norms.drift`), None if
            not measured.
    """

    name: str
    kind: str
    node: ir.Node
    x: ir.Value
    y: ir.Value
    scale: np.ndarray
    bias: np.ndarray | None
    mean: np.ndarray | None
    var: np.ndarray | None
    eps: float
    channels: int
    spatial: int
    inserted: bool = False
    trained: bool = True
    drift: float | None = None

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The constants by role, in the order of the node's inputs from the second on."""
        arrays = {"scale": self.scale, "bias": self.bias, "mean": self.mean, "var": self.var}
        return {role: array for role, array in arrays.items() if array is not None}


@dataclass(frozen=True)
class ModelNorms:
    """All norms of a model.

    Attributes:
        sites: norms that can adapt, in graph order.
        folded: layers that may get a norm.
        near_misses: nodes that resemble a norm but cannot adapt.
        skipped: layers that get no norm in any case.
    """

    sites: tuple[NormSite, ...]
    folded: tuple[Candidate, ...]
    near_misses: tuple[Rejection, ...]
    skipped: tuple[Rejection, ...]

    @property
    def summary(self) -> str:
        """`26 batch, 1 near miss` and the like."""
        counts = Counter(site.kind for site in self.sites)
        parts = [f"{count} {kind}" for kind, count in counts.items()] or ["none"]
        for name, misses in (("near miss", self.near_misses), ("folded", self.folded)):
            parts += (
                [f"{len(misses)} {name}{'es' if name == 'near miss' and len(misses) > 1 else ''}"] if misses else []
            )
        return ", ".join(parts)


def find_norms(model: ir.Model) -> ModelNorms:
    """Return the norms of a normalised model; raises nothing."""
    results = [_look(node) for node in model.graph]
    sites = tuple(result for result in results if isinstance(result, NormSite))
    near_misses = tuple(result for result in results if isinstance(result, Rejection))
    normed = {id(site.x): site.name for site in sites}
    marked = any(FOLDED in node.metadata_props for node in model.graph if _may_be_marked(node))
    folded, skipped = folded_layers(model, normed, marked)
    affine = [site for site in sites if site.kind == "affine"]
    folded += [_folded_affine(site) for site in affine if FOLDED in site.node.metadata_props or not marked]
    return ModelNorms(sites, tuple(folded), near_misses, tuple(skipped))


def _may_be_marked(node: ir.Node) -> bool:
    return node.op_type in FOLDABLE or node.metadata_props.get(KIND) == "affine"


def _folded_affine(site: NormSite) -> Candidate:
    """Return a scale and a shift per channel as a candidate: calibration data can complete them to a norm.

    Exporters that fold a batch norm leave this pair behind.
    """
    name = site.node.metadata_props.get(FOLDED, "")
    norm = f"`{name}`" if name not in ("", "?") else "a norm" if name else ""
    because = f"the exporter left the scale and shift of {norm}" if norm else "a scale and a shift per channel"
    return Candidate(site.name, site.node, site.x, because)


def bind_sites(sites: Sequence[NormSite], model: ir.Model) -> tuple[NormSite, ...]:
    """The same sites with the nodes and values of `model`, which is a clone of the model that holds the sites."""
    nodes = {node.name: node for node in model.graph}
    return tuple(_bound(site, nodes[site.node.name]) for site in sites)


def _bound(site: NormSite, node: ir.Node) -> NormSite:
    x = node.inputs[0]
    assert x is not None
    return replace(site, node=node, x=x, y=node.outputs[0])


def site_of(node: ir.Node, name: str, *, inserted: bool = False) -> NormSite:
    """Return the site of a BatchNormalization whose parameters are constants.

    Raises UnsupportedError if they are not.
    """
    site = _batch_norm(node, name, inserted)
    if isinstance(site, Rejection):
        raise UnsupportedError(f"`{name}` cannot be adapted: {site.because}", where=node_place(node))
    return site


def _look(node: ir.Node) -> NormSite | Rejection | None:
    name = node.metadata_props.get(LAYER) or str(node.name)
    kind = node.metadata_props.get(KIND) or KINDS.get(node.op_type, "")
    if kind == "instance" and _splits_channels(node):
        return Rejection(name, "group", node, "a norm over groups of channels whose own scale and bias are not 1 and 0")
    if kind == XHAT:
        return None
    if kind:
        return _own_statistics(node, name, kind)
    if node.op_type == "BatchNormalization":
        return _batch_norm(node, name)
    norm = standardisation(node)
    if norm is not None:
        because = norm if isinstance(norm, str) else "it works on other axes than the last ones or the channels"
        return Rejection(name, "written out", node, because)
    if _is_affine(node):
        because = "a scale and a shift per channel, but no layer before it: it may prepare the input"
        return Rejection(name, "affine", node, because)
    return None


def _own_statistics(node: ir.Node, name: str, kind: str) -> NormSite | Rejection:
    """Return the site of a norm that keeps no statistics of the source."""
    x, y = node.inputs[0], node.outputs[0]
    parameters = dict(zip(("scale", "bias"), node.inputs[1:3], strict=False))
    for role, value in parameters.items():
        if value is not None and value.const_value is None:
            return Rejection(name, kind, node, f"{value_place(value)} is computed, so it cannot be a norm's {role}")
    arrays = {
        role: np.asarray(value.const_value.numpy(), np.float32)
        for role, value in parameters.items()
        if value is not None and value.const_value is not None
    }
    if x is None or x.shape is None or len(x.shape) < 2 or not _one_symbol(x.shape) or "scale" not in arrays:
        return Rejection(name, kind, node, f"the shape of its input {value_place(x)} is not known")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return Rejection(name, kind, node, "its parameters are not finite")
    scale = arrays["scale"]
    channels = int(str(x.shape[1])) if kind in ("group", "instance") else scale.size
    eps = node.attributes.get_float("epsilon", 1e-5)
    spatial = max(1, sample_size(x.shape) // channels)
    return NormSite(
        name=name,
        kind=kind,
        node=node,
        x=x,
        y=y,
        scale=scale,
        bias=arrays.get("bias"),
        mean=None,
        var=None,
        eps=eps,
        channels=channels,
        spatial=spatial,
    )


def _one_symbol(shape: ir.Shape) -> bool:
    return sum(not isinstance(size, int) for size in shape) == 1


def _batch_norm(node: ir.Node, name: str, inserted: bool = False) -> NormSite | Rejection:
    x, *parameters = node.inputs
    roles = ("scale", "bias", "mean", "var")
    computed = [(v, role) for v, role in zip(parameters, roles, strict=True) if v is None or v.const_value is None]
    if computed:
        value, role = computed[0]
        return Rejection(name, "batch", node, f"{value_place(value)} is computed, so it cannot be a norm's {role}")
    if x is None or x.shape is None or len(x.shape) < 2 or not all(isinstance(size, int) for size in x.shape[1:]):
        return Rejection(name, "batch", node, f"its input {value_place(x)} is not [N, C, ...]")
    if isinstance(x.shape[0], int):
        return Rejection(name, "batch", node, f"its input {value_place(x)} is {x.shape}: no batch on the first axis")
    scale, bias, mean, var = (np.asarray(v.const_value.numpy(), np.float32) for v in parameters if v and v.const_value)
    channels = int(str(x.shape[1]))
    if any(array.shape != (channels,) for array in (scale, bias, mean, var)):
        return Rejection(name, "batch", node, f"its parameters are not [{channels}] each")
    if not all(np.isfinite(array).all() for array in (scale, bias, mean, var)) or (var < 0).any():
        return Rejection(name, "batch", node, "its parameters are not finite, or a variance is negative")
    eps = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    spatial = max(1, sample_size(x.shape) // max(1, channels))
    y = node.outputs[0]
    return NormSite(
        name=name,
        kind="batch",
        node=node,
        x=x,
        y=y,
        scale=scale,
        bias=bias,
        mean=mean,
        var=var,
        eps=eps,
        channels=channels,
        spatial=spatial,
        inserted=inserted,
    )


def _splits_channels(node: ir.Node) -> bool:
    """Return whether an InstanceNormalization works on groups.

    It stands between a Reshape to [N, groups, -1] and a Reshape back.
    """
    if node.op_type != "InstanceNormalization" or KIND in node.metadata_props:
        return False
    x = node.inputs[0]
    before = x.producer() if x is not None else None
    readers = [use.node.op_type for use in node.outputs[0].uses()]
    return before is not None and before.op_type == "Reshape" and readers == ["Reshape"]


def _is_affine(node: ir.Node) -> bool:
    """Return whether the node adds [C, 1, 1] to the product of the model's input with [C, 1, 1]."""
    if node.op_type != "Add":
        return False
    product = next((value.producer() for value in node.inputs if value is not None and value.producer()), None)
    if product is None or product.op_type != "Mul" or not (_per_channel(node) and _per_channel(product)):
        return False
    return any(value is not None and value.is_graph_input() for value in product.inputs)


def _per_channel(node: ir.Node) -> bool:
    shape = node.outputs[0].shape
    constants = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    if shape is None or len(shape) < 3 or len(constants) != 1:
        return False
    size = [int(str(d)) for d in constants[0].shape]
    tail = [shape[1], *[1] * (len(shape) - 2)]
    return size[-len(tail) :] == tail and all(d == 1 for d in size[: -len(tail)])
