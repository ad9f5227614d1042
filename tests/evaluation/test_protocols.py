"""Which shifts make a stream, in which order samples come, and when the adapter starts afresh."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttac.errors import UsageError
from ttac.evaluation.protocols import ORDERS, PROTOCOLS, RAMP, Order, Shift, ordered, schedule, streams

LABELS = np.random.default_rng(0).integers(0, 4, 90)
TWO = (Shift("fog", 5), Shift("snow", 5))


def test_a_stream_for_all_shifts_or_one_for_each() -> None:
    continual = [(Shift("clean"), Shift("fog", 3)), (Shift("clean"), Shift("fog", 5))]
    assert streams("continual", ["clean"], ["fog"], [3, 5]) == continual
    assert streams("mixed", ["clean"], ["fog"], [3, 5]) == continual
    each = [(Shift("clean"),), (Shift("fog", 3),), (Shift("fog", 5),)]
    assert streams("reset-each-shift", ["clean"], ["fog"], [3, 5]) == each
    assert streams("episodic", ["clean"], ["fog"], [3, 5]) == each
    assert streams("continual", ["a", "b"], [], [5]) == [(Shift("a"), Shift("b"))]


def test_gradual_goes_up_and_down() -> None:
    (stream,) = streams("gradual", [], ["fog", "snow"], [5])
    assert [shift.severity for shift in stream] == [*RAMP, *RAMP]
    assert [shift.name for shift in stream] == ["fog"] * 9 + ["snow"] * 9
    with pytest.raises(UsageError, match="gradual"):
        streams("gradual", ["clean"], [], [5])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name != "gradual"])
def test_every_sample_of_every_shift_comes_once(protocol: str, order: str) -> None:
    batches = list(schedule(protocol, TWO, 90, LABELS, Order(order), batch=16))
    seen = [(int(s), int(r)) for batch in batches for s, r in zip(batch.shifts, batch.rows, strict=True)]
    assert sorted(seen) == [(shift, row) for shift in range(2) for row in range(90)]
    assert all(len(batch.rows) <= 16 for batch in batches)
    if protocol != "mixed":
        assert all(len(set(batch.shifts.tolist())) == 1 for batch in batches)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))
def test_batches_hold_every_sample_once(count: int, size: int, seed: int) -> None:
    batches = list(schedule("mixed", TWO, count, None, Order(seed=seed), batch=size))
    assert sum(len(batch.rows) for batch in batches) == 2 * count
    assert len({(int(s), int(r)) for b in batches for s, r in zip(b.shifts, b.rows, strict=True)}) == 2 * count


def resets(protocol: str) -> list[bool]:
    return [batch.reset for batch in schedule(protocol, TWO, 20, None, Order(), batch=8)]


def test_when_the_adapter_starts_afresh() -> None:
    assert resets("continual") == [True, False, False, False, False, False]
    assert resets("reset-each-shift") == [True, False, False, True, False, False]
    assert resets("episodic") == [True] * 6
    assert resets("mixed") == [True, False, False, False, False]


def test_the_last_batches_are_never_too_small() -> None:
    sizes = [len(batch.rows) for batch in schedule("continual", TWO, 17, None, Order(), batch=8, smallest=2)]
    assert sizes == [8, 7, 2] * 2
    with pytest.raises(UsageError, match="cannot be divided"):
        list(schedule("continual", TWO, 17, None, Order(), batch=8, smallest=8))


def test_orders() -> None:
    np.testing.assert_array_equal(ordered(90, None, Order("file"), TWO[0]), np.arange(90))
    by_label = LABELS[ordered(90, LABELS, Order("by-label"), TWO[0])]
    assert (np.diff(by_label) >= 0).all()
    first, second = (ordered(90, None, Order("shuffled"), shift) for shift in TWO)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, ordered(90, None, Order("shuffled"), TWO[0]))
    assert not np.array_equal(first, ordered(90, None, Order("shuffled", seed=1), TWO[0]))


def test_a_small_concentration_makes_pure_dirichlet_slots() -> None:
    labels = np.repeat(np.arange(10), 100)

    def impurity(concentration: float) -> float:
        chosen = labels[ordered(1000, labels, Order("dirichlet", concentration), TWO[0])]
        return float(np.mean([len(set(part.tolist())) for part in chosen.reshape(-1, 20)]))

    assert impurity(0.01) < impurity(0.3) < impurity(100)


@pytest.mark.parametrize("order", ["by-label", "dirichlet"])
def test_orders_by_class_need_labels(order: str) -> None:
    with pytest.raises(UsageError, match="needs labels"):
        ordered(9, None, Order(order), TWO[0])
