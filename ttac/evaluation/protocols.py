"""The order of shifts and samples in a stream, and the batches before which a method is reset to the source model."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ttac.errors import UsageError
from ttac.samples.images import division

PROTOCOLS = {
    "continual": "all shifts in turn, never reset",
    "reset-each-shift": "reset before each shift",
    "episodic": "reset before each batch",
    "gradual": "severities 1 2 3 4 5 4 3 2 1 of each corruption in turn, never reset",
    "mixed": "the samples of all shifts shuffled into one stream, never reset",
}
ORDERS = {
    "shuffled": "at random",
    "file": "in the order of the file",
    "by-label": "one class after the other",
    "dirichlet": "in slots, the classes spread over the slots by a Dirichlet distribution (`--concentration`)",
}
WITH_LABELS = ("by-label", "dirichlet")
"""Orders that need labels."""

RAMP = (1, 2, 3, 4, 5, 4, 3, 2, 1)


@dataclass(frozen=True)
class Shift:
    """A corruption and its severity, or an array of the samples without severity."""

    name: str
    severity: int | None = None

    def __str__(self) -> str:
        return self.name if self.severity is None else f"{self.name} {self.severity}"


@dataclass(frozen=True)
class Order:
    """The order of the samples in a shift.

    Attributes:
        kind: a key of `ORDERS`.
        concentration: parameter of the Dirichlet distribution; small values put most of a class into one slot.
        seed: seed of all random numbers.
    """

    kind: str = "shuffled"
    concentration: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Samples of one step: `rows[i]` of shift number `shifts[i]`; `reset` says whether a reset comes first."""

    shifts: np.ndarray
    rows: np.ndarray
    reset: bool


def streams(
    protocol: str, arrays: Sequence[str], corruptions: Sequence[str], severities: Sequence[int]
) -> list[tuple[Shift, ...]]:
    """Return the shifts of each independent stream.

    A protocol that carries state from shift to shift has one stream; any other protocol has one stream per shift.
    Raises UsageError when the protocol has no shift to run on.
    """
    uncorrupted = [Shift(name) for name in arrays]
    if protocol == "gradual":
        if not corruptions:
            problem = "protocol `gradual` changes the severity of corruptions, and there are none"
            raise UsageError(problem, where="`--protocol`", hint="name some with `--corruptions`")
        return [tuple(Shift(name, severity) for name in corruptions for severity in RAMP)]
    if protocol in ("continual", "mixed"):
        corrupted = [tuple(Shift(name, severity) for name in corruptions) for severity in severities if corruptions]
        return [(*uncorrupted, *shifts) for shifts in corrupted] or [tuple(uncorrupted)]
    corrupted_shifts = [Shift(name, severity) for severity in severities for name in corruptions]
    return [(shift,) for shift in (*uncorrupted, *corrupted_shifts)]


def schedule(
    protocol: str,
    shifts: Sequence[Shift],
    count: int,
    labels: np.ndarray | None,
    order: Order,
    *,
    batch: int,
    smallest: int = 1,
) -> Iterator[Batch]:
    """Yield the batches of one stream over `count` samples of every shift.

    Raises UsageError when the samples cannot be divided into batches of `smallest` to `batch`.
    """
    rows = [ordered(count, labels, order, shift) for shift in shifts]
    if protocol == "mixed":
        which = np.repeat(np.arange(len(shifts)), count)
        places = np.random.default_rng([order.seed, len(shifts)]).permutation(len(which))
        if order.kind in WITH_LABELS and labels is not None:
            merged = np.argsort(labels[np.concatenate(rows)[places]], kind="stable")
            places = places[merged]
        parts = [(which[places], np.concatenate(rows)[places])]
    else:
        parts = [(np.full(count, number), each) for number, each in enumerate(rows)]
    for part, (which, positions) in enumerate(parts):
        start = 0
        for size in division(len(positions), batch, smallest):
            reset = protocol == "episodic" or (start == 0 and (part == 0 or protocol == "reset-each-shift"))
            yield Batch(which[start : start + size], positions[start : start + size], reset)
            start += size


def ordered(count: int, labels: np.ndarray | None, order: Order, shift: Shift) -> np.ndarray:
    """Return the positions 0..count-1 in an order that depends on the shift and on no other shift of the stream.

    Raises UsageError when the order needs labels and there are none.
    """
    if order.kind == "file":
        return np.arange(count)
    generator = np.random.default_rng([order.seed, zlib.crc32(str(shift).encode())])
    positions = generator.permutation(count)
    if order.kind == "shuffled":
        return positions
    if labels is None:
        hint = "use `--order shuffled`, or give labels"
        raise UsageError(f"order `{order.kind}` needs labels, and there are none", where="`--order`", hint=hint)
    if order.kind == "by-label":
        return positions[np.argsort(labels[positions], kind="stable")]
    return _in_slots(positions, labels, order.concentration, generator)


def _in_slots(
    positions: np.ndarray, labels: np.ndarray, concentration: float, generator: np.random.Generator
) -> np.ndarray:
    """Return the positions slot by slot, with one slot per class.

    A draw from the Dirichlet distribution spreads each class over the slots; each slot is shuffled.
    """
    classes = np.unique(labels)
    slots: list[list[np.ndarray]] = [[] for _ in classes]
    for label in classes:
        members = positions[labels[positions] == label]
        fractions = generator.dirichlet(np.full(len(classes), concentration))
        cuts = np.round(np.cumsum(fractions)[:-1] * len(members)).astype(int)
        for slot, part in zip(slots, np.split(members, cuts), strict=True):
            slot.append(part)
    return np.concatenate([generator.permutation(np.concatenate(slot)) for slot in slots])
