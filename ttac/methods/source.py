"""The model as it shipped: the stored statistics, nothing learned.  What every other method is compared with."""

from __future__ import annotations

from ttac.spec import Method

METHOD = Method(
    name="source",
    title="the model as it shipped, no adaptation",
    paper="",
    needs="nothing",
    adapts=False,
)
