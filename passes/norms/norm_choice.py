"""Decide which norms adapt, and which convolutions get a norm from calibration data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ttac.errors import UnsupportedError
from ttac.passes.graph.layer_names import CONVOLUTIONS, FOLDED
from ttac.passes.norms.folded_norms import Candidate, Rejection
from ttac.passes.norms.norm_sites import ModelNorms, NormSite

KEEP_NORMS = (
    'with PyTorch, export it with its norms: `torch.onnx.export(model, x, "model.onnx", dynamo=True, optimize=False)`, '
    "or with `dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False`"
)


@dataclass(frozen=True)
class Decision:
    """Which norms are adapted: `sites` as they are in the file, then those `inserted` where one was; and why."""

    sites: tuple[NormSite, ...]
    inserted: tuple[Candidate, ...]
    because: str


def decide(found: ModelNorms, norms: str = "auto", *, has_calibration: bool = False) -> Decision:
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


def _nothing(found: ModelNorms, norms: str) -> UnsupportedError:
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


def _listed(items: Sequence[Candidate | Rejection]) -> str:
    lines = [f"`{item.name}`: {item.because}" for item in items[:5]]
    return "\n     ".join([*lines, *([f"and {len(items) - 5} more"] if len(items) > 5 else [])])
