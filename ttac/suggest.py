"""One thing to try after a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``did you mean `tent`?``, or the list of all choices when none is near `word`."""
    choices = list(choices)
    near = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.5)
    if near:
        return f"did you mean `{near[0]}`?"
    if not choices:
        return "there is none to choose from"
    return "choose from " + ", ".join(f"`{choice}`" for choice in choices)
