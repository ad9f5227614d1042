"""Checks of the labels of samples."""

from __future__ import annotations

import numpy as np

from ttac.errors import UsageError


def refuse_texts(labels: np.ndarray, where: str) -> None:
    """Raise UsageError for labels that are no numbers."""
    if labels.dtype.kind not in "biuf":
        raise UsageError(
            f"the labels are `{labels.dtype}`, not class numbers",
            where=where,
            hint="give whole numbers from 0: `np.unique(labels, return_inverse=True)[1]` numbers the names in order",
        )
