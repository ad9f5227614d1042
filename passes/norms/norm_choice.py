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
"""Hint: the ways to export a model with its norms."""


@dataclass(frozen=True)
class Decision:
    """Norms that adapt: `sites` that the file has, then the `inserted` candidates; and the reason."""

    sites: tuple[NormSite, ...]
    inserted: tuple[Candidate, ...]
    because: str


def decide(census: ModelNorms, norms: str = "auto", *, has_calibration: bool = False) -> Decision:
    """Decide which norms adapt and which convolutions get a norm.

    Args:
        census: the norms of the model.
        norms: "keep" adapts the norms in the file; "insert" also gives every candidate a norm; "auto" inserts only if
            the file has no norm, or if the exporter states which norms it folded. Without source samples, "auto" uses
            the batch norms that are left, where there are any.
        has_calibration: whether there are source samples for the statistics of an inserted norm.

    Raises UnsupportedError, with both ways out, if nothing can adapt.
    """
    marked = [candidate for candidate in census.folded if FOLDED in candidate.node.metadata_props]
    batch = [site for site in census.sites if site.kind == "batch"]
    repairs = bool(marked) if has_calibration else not batch and bool(marked or not census.sites)
    inserts = {"keep": False, "insert": True, "auto": repairs or not census.sites}[norms]
    if not inserts or not census.folded:
        if not census.sites:
            raise _nothing(census, norms)
        left = f"; {len(marked)} more were folded by the exporter (`--norms insert` restores them)" if marked else ""
        return Decision(census.sites, (), f"the file has {_by_kind(census.sites)}{left}")
    if not has_calibration:
        lost = f"the exporter folded {_many(marked, 'norm')} into convolutions" if marked else "the file has no norm"
        raise UnsupportedError(
            f"{lost}: without calibration data there are no statistics to adapt from"
            if norms == "auto"
            else f"`--norms insert` needs calibration data for {_many(census.folded, 'convolution')}",
            where=_listed(census.folded),
            hint=f"give a few hundred unlabelled source samples, `--calibration PATH`, or {KEEP_NORMS}",
        )
    bare = [candidate for candidate in census.folded if candidate.node.op_type in CONVOLUTIONS]
    scaled = [candidate for candidate in census.folded if candidate not in bare]
    parts = [_many(items, word) for items, word in ((bare, "convolution"), (scaled, "scale-and-shift")) if items]
    completed = {id(candidate.node) for candidate in scaled}
    kept = tuple(site for site in census.sites if id(site.node) not in completed)
    return Decision(kept, census.folded, f"{' and '.join(parts)} get a norm from calibration data")


def _many(items: Sequence[object], word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"


def _by_kind(sites: Sequence[NormSite]) -> str:
    """`24 layer norms, 1 batch norm`."""
    kinds = Counter(site.kind for site in sites)
    return ", ".join(_many(range(count), f"{kind} norm") for kind, count in kinds.items())


def _nothing(census: ModelNorms, norms: str) -> UnsupportedError:
    if norms == "keep" and census.folded:
        return UnsupportedError(
            "the file has no batch norm, and `--norms keep` restores none",
            where=_listed(census.folded),
            hint=f"leave out `--norms keep` and give `--calibration PATH`, or {KEEP_NORMS}",
        )
    has = "nothing that is quite a norm" if census.near_misses else "no norm and no convolution that may have had one"
    return UnsupportedError(
        f"nothing to adapt: the file has {has}",
        where=_listed([*census.near_misses, *census.skipped]),
        hint=f"`ttac inspect` lists the reason for each node; if the model has batch norms, {KEEP_NORMS}",
    )


def _listed(items: Sequence[Candidate | Rejection]) -> str:
    lines = [f"`{item.name}`: {item.because}" for item in items[:5]]
    return "\n     ".join([*lines, *([f"and {len(items) - 5} more"] if len(items) > 5 else [])])
