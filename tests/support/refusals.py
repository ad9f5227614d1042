"""Check that a call is refused with its reason and a way out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ttac.errors import TtacError


def refusal(error: type[TtacError], call: Callable[[], object], *parts: str) -> TtacError:
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert caught.value.hint, f"no way out: {text}"
    for part in parts:
        assert part in text, text
    return caught.value
