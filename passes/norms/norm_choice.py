"""Decide which norms adapt, and which convolutions get a norm from calibration data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ttac.errors import UnsupportedError
from ttac.passes.graph.layer_names import CONVOLUTIONS, FOLDABLE, FOLDED
from ttac.passes.norms.folded_norms import WHOLE_NUMBERS, WORDS, Candidate, Rejection
from ttac.passes.norms.norm_sites import ModelNorms, NormSite

KEEP_NORMS = (
    'with PyTorch, export it with its norms: `torch.onnx.export(model, x, "model.onnx", dynamo=True, optimize=False)`, '
    "or with `dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False`"
)
"""Hint: the ways to export a model with its norms."""


@dataclass(frozen=True)
class NormDecision:
    """Norms that adapt: `sites` that the file has, then the `inserted` candidates; and the reason."""

    sites: tuple[NormSite, ...]
    inserted: tuple[Candidate, ...]
    because: str


def decide(census: ModelNorms, norms: str = "auto", *, has_calibration: bool = False) -> NormDecision:
    """Decide which norms adapt and which convolutions get a norm.

    Args:
        census: the norms of the model.
        norms: "keep" adapts the norms in the file; "insert" also gives every candidate a norm. "auto" inserts only if
            the file has no norm, or if the exporter states which norms it folded. Without source samples, "auto" uses
            the remaining batch norms, if any.
        has_calibration: whether there are source samples for the statistics of an inserted norm.

    Raises UnsupportedError, with both ways out, if nothing can adapt.
    """
    candidates = _candidates(census, norms)
    marked = [candidate for candidate in candidates if FOLDED in candidate.node.metadata_props]
    batch = [site for site in census.sites if site.kind == "batch"]
    repairs = _is_folded(census, candidates) if has_calibration else not batch and bool(marked or not census.sites)
    inserts = {"keep": False, "insert": True, "auto": repairs or not census.sites}[norms]
    if not inserts or not candidates:
        if not census.sites:
            raise _nothing(census, norms)
        return NormDecision(
            census.sites, (), f"the file has {_by_kind(census.sites)}{_left(census, candidates, norms)}"
        )
    if not has_calibration:
        lost = (
            f"the exporter folded {_many(marked, 'norm')} into {_kinds(marked)}" if marked else "the file has no norm"
        )
        raise UnsupportedError(
            f"{lost}: without calibration data there are no statistics to adapt from"
            if norms == "auto"
            else f"`--norms insert` needs calibration data for {_by_layer(candidates)}",
            where=_listed(candidates),
            hint=f"give a few hundred unlabelled source samples, `--calibration PATH`{_alone(census)}, or {KEEP_NORMS}",
        )
    completed = {id(candidate.node) for candidate in candidates if candidate.node.op_type not in FOLDABLE}
    kept = tuple(site for site in census.sites if id(site.node) not in completed)
    others = f"; the file has {_by_kind(kept)}" if kept else ""
    verb = "gets" if len(candidates) == 1 else "get"
    return NormDecision(kept, candidates, f"{_by_layer(candidates)} {verb} a norm from calibration data{others}")


def _candidates(census: ModelNorms, norms: str) -> tuple[Candidate, ...]:
    """Return the candidates that `norms` considers.

    A linear layer behind convolutions, such as the first of a classifier, often has no norm in the source. Without a
    mark of the exporter, "auto" leaves it alone.
    """
    layers = [*(item.node for item in census.folded), *(item.node for item in census.skipped)]
    if norms == "insert" or not any(node.op_type in CONVOLUTIONS for node in layers):
        return census.folded
    return tuple(c for c in census.folded if c.node.op_type != "Gemm" or FOLDED in c.node.metadata_props)


def _is_folded(census: ModelNorms, candidates: Sequence[Candidate]) -> bool:
    """Return whether the file lost batch norms: by marks of the exporter, or by more such layers than batch norms.

    Exporters that fold norms without a mark leave those behind a Concat, a Pad or a depthwise layer. In a file with all
    its norms, few convolutions have a bias.
    """
    if any(FOLDED in candidate.node.metadata_props for candidate in candidates):
        return True
    batch = sum(site.kind == "batch" for site in census.sites)
    return 0 < batch < sum(candidate.node.op_type in CONVOLUTIONS for candidate in candidates)


def _left(census: ModelNorms, candidates: Sequence[Candidate], norms: str) -> str:
    """Return a note on the layers that may have lost their norm and get none."""
    if not candidates or not _is_folded(census, candidates):
        return ""
    if any(FOLDED in candidate.node.metadata_props for candidate in candidates):
        was = "was" if len(candidates) == 1 else "were"
        return f"; {len(candidates)} more {was} folded by the exporter (`--norms insert` restores them)"
    option = "--calibration PATH" if norms == "auto" else "--norms insert"
    return f"; {_by_layer(candidates)} with a bias may have lost their norm (`{option}` restores them)"


def _kinds(candidates: Sequence[Candidate]) -> str:
    """`convolutions and linear layers`."""
    words = [WORDS.get(c.node.op_type, "scale-and-shift") for c in candidates]
    return " and ".join(f"{word}s" for word in dict.fromkeys(words))


def _by_layer(candidates: Sequence[Candidate]) -> str:
    """`2 convolutions and 1 scale-and-shift`."""
    words = [WORDS.get(c.node.op_type, "scale-and-shift") for c in candidates]
    return " and ".join(_many(range(words.count(word)), word) for word in dict.fromkeys(words))


def _alone(census: ModelNorms) -> str:
    """`, or adapt the 21 group norms alone, `--norms keep``; empty for a file without a norm."""
    return f", or adapt the {_by_kind(census.sites)} alone, `--norms keep`" if census.sites else ""


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
    whole = [item for item in census.skipped if item.node.op_type in WHOLE_NUMBERS]
    if whole and not census.near_misses:
        words = " and ".join(f"{word}s" for word in dict.fromkeys(item.kind for item in whole))
        return UnsupportedError(
            f"nothing to adapt: the file has no norm, and its {words} multiply whole numbers",
            where=_listed(whole),
            hint="compile the float file that this one was made from; `--quantize int8` gives 8-bit layers",
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
