"""The hint that follows an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SYNONYMS = {"learning_rate": "lr", "learning-rate": "lr", "learningrate": "lr"}
"""Names that other tools use for an option, and the name of that option here."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``did you mean `adam`?``, or the list of all choices when none is near `word`."""
    choices, lower = list(choices), word.lower()
    near = [SYNONYMS[lower]] if SYNONYMS.get(lower) in choices else []
    near = near or difflib.get_close_matches(lower, choices, n=1, cutoff=0.5)
    if near:
        return f"did you mean `{near[0]}`?"
    if not choices:
        return "there is nothing to choose from"
    return "choose from " + ", ".join(f"`{choice}`" for choice in choices)
