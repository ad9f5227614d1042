"""No collection of garbage while a graph is compiled."""

from __future__ import annotations

import gc

import pytest

from ttac.garbage import uncollected


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_inside_and_is_as_it_was_outside(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyError), uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
