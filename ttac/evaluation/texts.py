"""Texts of a reader: greedy decoding of frames, and the character error rate by jiwer."""

from __future__ import annotations

import numpy as np

from ttac.errors import RuntimeMissingError

FIRST = 0x20000
"""Code point of class 0 in the texts for jiwer: a plane without spaces, which jiwer strips."""


def decoded(frames: np.ndarray, blank: int) -> np.ndarray:
    """Return the classes of each text, int64 [n, T], filled up with -1, from the class of each frame [n, T].

    Equal neighbours are one character, and the blank is none (Graves et al., ICML 2006, section 3.2).
    """
    texts = np.full(frames.shape, -1, np.int64)
    for text, frame in zip(texts, frames, strict=True):
        changes = np.concatenate([[True], frame[1:] != frame[:-1]])
        kept = frame[changes & (frame != blank)]
        text[: len(kept)] = kept
    return texts


def character_errors(answers: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """Return the substituted, inserted and deleted characters of texts [n, .], and the characters of the labels [n, .].

    Negative classes fill up.  Raises RuntimeMissingError without jiwer.
    """
    try:
        import jiwer
    except ImportError as error:
        raise RuntimeMissingError("the error of texts needs jiwer", hint="`pip install 'ttac[eval]'`") from error
    found = jiwer.process_characters(_texts(labels), _texts(answers))
    edits = found.substitutions + found.insertions + found.deletions
    return int(edits), int((labels >= 0).sum())


def _texts(classes: np.ndarray) -> list[str]:
    return ["".join(chr(FIRST + each) for each in row[row >= 0].tolist()) for row in classes]
