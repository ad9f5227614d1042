"""Recognise the norms of a normalised model, and the convolutions that lost theirs to the exporter.

Nothing is changed here.  A recogniser never half-matches: what it does not take, it lists with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError, UsageError
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.layer_names import CONVOLUTIONS, FOLDED, unique
from ttac.passes.graph.match import standardised
from ttac.passes.graph.shapes import sample_size
from ttac.passes.normalise.fuse_norms import KIND, XHAT
from ttac.suggest import did_you_mean

KINDS = {"LayerNormalization": "layer", "InstanceNormalization": "instance"}
AFTERTHOUGHTS = frozenset(
    "AveragePool Clip Flatten GlobalAveragePool GlobalMaxPool LogSoftmax ReduceMean Relu Reshape Resize Sigmoid "
    "Softmax Squeeze Transpose".split()
)
"""Operators without parameters that may stand between the last layer and the output."""

KEEP_NORMS = (
    'with PyTorch, export it with its norms: `torch.onnx.export(model, x, "model.onnx", dynamo=True, optimize=False)`, '
    "or with `dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False`"
)


@dataclass(frozen=True, eq=False)
class NormSite:
    """A norm whose parameters are constant inputs of one node: scale second, then bias, mean and variance.

    Attributes:
        kind: "batch" (y = (x - mean)/sqrt(var + eps)*scale + bias, all four [C]), the others by their own statistics:
            "layer", "group", "instance", "rms" (no bias), or none: "affine" (a folded batch norm's scale and bias).
        x, y: input and output of the node; [N, C, ...] but for "layer" and "rms".
        scale, bias: float32, [C] but for "layer" and "rms", which have the shape of their axes; bias may be absent.
        mean, var: statistics of the source, None for all kinds but "batch".
        spatial: elements of one channel of one sample; 1 for [N, C], 16 for [16*N, C].
        inserted: made by ttac behind a convolution that had lost its norm.
        trained: whether a method that trains norms trains this one.
        drift: how far its input moves when the model's is disturbed (`ttac.passes.norms.drift`), None if nobody asked.
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
        held = {"scale": self.scale, "bias": self.bias, "mean": self.mean, "var": self.var}
        return {role: array for role, array in held.items() if array is not None}


@dataclass(frozen=True, eq=False)
class Candidate:
    """A convolution that may be given a norm behind it, or a scale and a shift that were a norm.

    Attributes:
        name: of the norm that was folded into it, where the file tells, else of the convolution.
        value: what the norm normalises, [N, C, ...]: the convolution's output, or what is scaled.
    """

    name: str
    node: ir.Node
    value: ir.Value
    because: str


@dataclass(frozen=True, eq=False)
class Passed:
    """A node that was looked at and left alone."""

    name: str
    kind: str
    node: ir.Node
    because: str


@dataclass(frozen=True)
class Found:
    """All norms of a model.

    Attributes:
        sites: norms that can be adapted, in graph order.
        folded: convolutions that may be given a norm.
        near_misses: what looks like a norm but is none that can be adapted.
        skipped: convolutions that get no norm in any case.
    """

    sites: tuple[NormSite, ...]
    folded: tuple[Candidate, ...]
    near_misses: tuple[Passed, ...]
    skipped: tuple[Passed, ...]

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


@dataclass(frozen=True)
class Decision:
    """Which norms are adapted: `sites` as they are in the file, then those `inserted` where one was; and why."""

    sites: tuple[NormSite, ...]
    inserted: tuple[Candidate, ...]
    because: str


def find_norms(model: ir.Model) -> Found:
    """The norms of a normalised model; raises nothing."""
    looked = [_look(node) for node in model.graph]
    sites = tuple(found for found in looked if isinstance(found, NormSite))
    passed = [found for found in looked if isinstance(found, Passed)]
    normed = {id(site.x): site.name for site in sites}
    told = any(FOLDED in node.metadata_props for node in model.graph if _holds_norm(node))
    folded, skipped = _convolutions(model, normed, told)
    affine = [site for site in sites if site.kind == "affine"]
    folded += [_once_a_norm(site) for site in affine if FOLDED in site.node.metadata_props or not told]
    return Found(sites, tuple(folded), tuple(passed), tuple(skipped))


def _holds_norm(node: ir.Node) -> bool:
    return node.op_type in CONVOLUTIONS or node.metadata_props.get(KIND) == "affine"


def _once_a_norm(site: NormSite) -> Candidate:
    """A scale and a shift per channel, as a folded batch norm leaves them, that calibration data can complete."""
    told = site.node.metadata_props.get(FOLDED, "")
    what = f"`{told}`" if told not in ("", "?") else "a norm" if told else ""
    because = f"the exporter left the scale and shift of {what}" if what else "a scale and a shift per channel"
    return Candidate(site.name, site.node, site.x, because)


def site_of(node: ir.Node, name: str, *, inserted: bool = False) -> NormSite:
    """The site of a BatchNormalization whose parameters are constants.

    Raises UnsupportedError if it is not one.
    """
    found = _batch_norm(node, name, inserted)
    if isinstance(found, Passed):
        raise UnsupportedError(f"`{name}` cannot be adapted: {found.because}", where=f"node `{node.name}`")
    return found


def _look(node: ir.Node) -> NormSite | Passed | None:
    name = node.metadata_props.get(LAYER) or str(node.name)
    kind = node.metadata_props.get(KIND) or KINDS.get(node.op_type, "")
    if kind == "instance" and _splits_channels(node):
        return Passed(name, "group", node, "a norm over groups of channels whose own scale and bias are not 1 and 0")
    if kind == XHAT:
        return None
    if kind:
        return _own_statistics(node, name, kind)
    if node.op_type == "BatchNormalization":
        return _batch_norm(node, name)
    found = standardised(node)
    if found is not None:
        because = found if isinstance(found, str) else "it works on other axes than the last ones or the channels"
        return Passed(name, "written out", node, because)
    if _is_affine(node):
        because = "a scale and a shift per channel, but no layer before it: it may prepare the input"
        return Passed(name, "affine", node, because)
    return None


def _own_statistics(node: ir.Node, name: str, kind: str) -> NormSite | Passed:
    """The site of a norm that keeps no statistics of the source."""
    x, y = node.inputs[0], node.outputs[0]
    held = dict(zip(("scale", "bias"), node.inputs[1:3], strict=False))
    for role, value in held.items():
        if value is not None and value.const_value is None:
            return Passed(name, kind, node, f"`{value.name}` is computed, so it cannot be a norm's {role}")
    arrays = {
        role: np.asarray(value.const_value.numpy(), np.float32)
        for role, value in held.items()
        if value is not None and value.const_value is not None
    }
    if x is None or x.shape is None or len(x.shape) < 2 or not _one_symbol(x.shape) or "scale" not in arrays:
        return Passed(name, kind, node, f"the shape of its input `{x.name if x else ''}` is not known")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return Passed(name, kind, node, "its parameters are not finite")
    scale = arrays["scale"]
    channels = int(str(x.shape[1])) if kind in ("group", "instance") else scale.size
    eps = node.attributes.get_float("epsilon", 1e-5)
    spatial = max(1, sample_size(x.shape) // channels)
    return NormSite(name, kind, node, x, y, scale, arrays.get("bias"), None, None, eps, channels, spatial)


def _one_symbol(shape: ir.Shape) -> bool:
    return sum(not isinstance(size, int) for size in shape) == 1


def _batch_norm(node: ir.Node, name: str, inserted: bool = False) -> NormSite | Passed:
    x, *parameters = node.inputs
    roles = ("scale", "bias", "mean", "var")
    computed = [(v, role) for v, role in zip(parameters, roles, strict=True) if v is None or v.const_value is None]
    if computed:
        value, role = computed[0]
        return Passed(
            name, "batch", node, f"`{value.name if value else ''}` is computed, so it cannot be a norm's {role}"
        )
    if x is None or x.shape is None or len(x.shape) < 2 or not all(isinstance(size, int) for size in x.shape[1:]):
        return Passed(name, "batch", node, f"its input `{x.name if x else ''}` is not [N, C, ...]")
    if isinstance(x.shape[0], int):
        return Passed(name, "batch", node, f"its input `{x.name}` is {x.shape}: no batch on the first axis")
    scale, bias, mean, var = (np.asarray(v.const_value.numpy(), np.float32) for v in parameters if v and v.const_value)
    channels = int(str(x.shape[1]))
    if any(array.shape != (channels,) for array in (scale, bias, mean, var)):
        return Passed(name, "batch", node, f"its parameters are not [{channels}] each")
    if not all(np.isfinite(array).all() for array in (scale, bias, mean, var)) or (var < 0).any():
        return Passed(name, "batch", node, "its parameters are not finite, or a variance is negative")
    eps = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    spatial = max(1, sample_size(x.shape) // max(1, channels))
    y = node.outputs[0]
    return NormSite(name, "batch", node, x, y, scale, bias, mean, var, eps, channels, spatial, inserted)


def _splits_channels(node: ir.Node) -> bool:
    """Whether an InstanceNormalization works on groups: between a Reshape to [N, groups, -1] and one back."""
    if node.op_type != "InstanceNormalization" or KIND in node.metadata_props:
        return False
    x = node.inputs[0]
    before = x.producer() if x is not None else None
    readers = [use.node.op_type for use in node.outputs[0].uses()]
    return before is not None and before.op_type == "Reshape" and readers == ["Reshape"]


def _is_affine(node: ir.Node) -> bool:
    """An Add of [C, 1, 1] to a Mul with [C, 1, 1], of the input."""
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
    wanted = [shape[1], *[1] * (len(shape) - 2)]
    return size[-len(wanted) :] == wanted and all(d == 1 for d in size[: -len(wanted)])


def _convolutions(model: ir.Model, normed: dict[int, str], told: bool) -> tuple[list[Candidate], list[Passed]]:
    convolutions = [node for node in model.graph if node.op_type in CONVOLUTIONS]
    names = {node.metadata_props.get(LAYER, "") for node in model.graph}
    candidates, skipped = [], []
    for node in convolutions:
        layer, norm = node.metadata_props.get(LAYER) or str(node.name), node.metadata_props.get(FOLDED, "")
        reason = _reason_against(node, normed, told)
        if reason:
            skipped.append(Passed(layer, "convolution", node, reason))
            continue
        name = unique(norm, names) if norm not in ("", "?") else layer
        names.add(name)
        candidates.append(Candidate(name, node, node.outputs[0], _reason_for(norm)))
    return candidates, skipped


def _reason_for(norm: str) -> str:
    if norm == "?":
        return "the exporter renamed its kernel and bias, as it does when it folds a norm"
    return f"the exporter folded `{norm}` into it" if norm else "it has a bias and no norm behind it"


def _reason_against(node: ir.Node, normed: dict[int, str], told: bool) -> str:
    """Why a convolution gets no norm; an empty string if it may."""
    y = node.outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if id(y) in normed:
        return f"followed by `{normed[id(y)]}`"
    if bias is None and not node.metadata_props.get(FOLDED):  # exporters drop a bias of zeros, an untrained net's
        return "it has no bias, which a folded norm always leaves behind"
    if (bias is not None and bias.const_value is None) or node.inputs[1] is None or node.inputs[1].const_value is None:
        return "its kernel or bias is computed"
    if y.is_graph_output():
        return "it gives the output"
    if y.shape is None or not all(isinstance(size, int) for size in y.shape[1:]):
        return f"the shape of its output is {y.shape}"
    if all(size == 1 for size in y.shape[2:]):
        return "it gives one value per channel (squeeze-and-excite, or a classifier)"
    if FOLDED in node.metadata_props:
        return ""
    if told:
        return "it kept its own bias, and the exporter marked those it folded a norm into"
    return "only operators without parameters stand between it and the output" if _is_last(y) else ""


def _is_last(value: ir.Value) -> bool:
    while not value.is_graph_output():
        readers = [use.node for use in value.uses()]
        if len(readers) != 1 or readers[0].op_type not in AFTERTHOUGHTS:
            return False
        value = readers[0].outputs[0]
    return True


def decide(found: Found, norms: str = "auto", *, has_calibration: bool = False) -> Decision:
    """Which norms to adapt and which convolutions to give one.

    Args:
        found: the norms of the model.
        norms: "keep" adapts what the file has; "insert" also gives every candidate a norm; "auto" does that only for a
            file without any norm, or whose exporter states which norms it folded; without source samples it makes do
            with the batch norms that are left, where there are any.
        has_calibration: whether there are source samples to take an inserted norm's statistics from.

    Raises UnsupportedError, with both ways out, if nothing can be adapted.
    """
    told = [candidate for candidate in found.folded if FOLDED in candidate.node.metadata_props]
    batch = [site for site in found.sites if site.kind == "batch"]
    repairs = bool(told) if has_calibration else not batch and bool(told or not found.sites)
    wanted = {"keep": False, "insert": True, "auto": repairs or not found.sites}[norms]
    if not wanted or not found.folded:
        if not found.sites:
            raise _nothing(found, norms)
        left = f"; {len(told)} more were folded by the exporter (`--norms insert` restores them)" if told else ""
        return Decision(found.sites, (), f"the file has {_by_kind(found.sites)}{left}")
    if not has_calibration:
        lost = f"the exporter folded {_many(told, 'norm')} into convolutions" if told else "the file holds no norm"
        raise UnsupportedError(
            f"{lost}: without calibration data there are no statistics to adapt from"
            if norms == "auto"
            else f"`--norms insert` needs calibration data for {_many(found.folded, 'convolution')}",
            where=_listed(found.folded),
            hint=f"give a few hundred unlabelled source samples, `--calibration PATH`, or {KEEP_NORMS}",
        )
    bare = [candidate for candidate in found.folded if candidate.node.op_type in CONVOLUTIONS]
    scaled = [candidate for candidate in found.folded if candidate not in bare]
    parts = [_many(items, word) for items, word in ((bare, "convolution"), (scaled, "scale-and-shift")) if items]
    completed = {id(candidate.node) for candidate in scaled}
    kept = tuple(site for site in found.sites if id(site.node) not in completed)
    return Decision(kept, found.folded, f"{' and '.join(parts)} get a norm from calibration data")


def _many(items: Sequence[object], word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"


def _by_kind(sites: Sequence[NormSite]) -> str:
    """`24 layer norms, 1 batch norm`."""
    kinds = Counter(site.kind for site in sites)
    return ", ".join(_many(range(count), f"{kind} norm") for kind, count in kinds.items())


def _nothing(found: Found, norms: str) -> UnsupportedError:
    if norms == "keep" and found.folded:
        return UnsupportedError(
            "the file has no batch norm, and `--norms keep` restores none",
            where=_listed(found.folded),
            hint=f"leave out `--norms keep` and give `--calibration PATH`, or {KEEP_NORMS}",
        )
    has = "nothing that is quite a norm" if found.near_misses else "no norm and no convolution that may have had one"
    return UnsupportedError(
        f"nothing to adapt: the file has {has}",
        where=_listed([*found.near_misses, *found.skipped]),
        hint=f"`ttac inspect` tells why each was left alone; if the model has batch norms, {KEEP_NORMS}",
    )


def _listed(items: Sequence[Candidate | Passed]) -> str:
    lines = [f"`{item.name}`: {item.because}" for item in items[:5]]
    return "\n     ".join([*lines, *([f"and {len(items) - 5} more"] if len(items) > 5 else [])])


def select(sites: Sequence[NormSite], selector: str = "norms") -> tuple[NormSite, ...]:
    """The sites that `--train` names: "norms" for all, or patterns and module names, `layer3,layer4.*.bn1`.

    Raises UsageError for a pattern that fits no site, naming the nearest.
    """
    if selector == "norms":
        return tuple(sites)
    patterns = [pattern.strip() for pattern in selector.split(",") if pattern.strip()]
    names = [site.name for site in sites]
    for pattern in patterns or [selector]:
        if not any(_fits(name, pattern) for name in names):
            near = did_you_mean(pattern, dict.fromkeys([*names, *_modules(names)]))
            raise UsageError(f"`{pattern}` fits no norm site", where=f"`--train {selector}`", hint=near)
    return tuple(site for site in sites if any(_fits(site.name, pattern) for pattern in patterns))


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(pattern + ".")


def _modules(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:count]) for count in range(1, len(parts)))
