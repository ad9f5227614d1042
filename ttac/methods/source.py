"""The source model: stored statistics, nothing learned.  The baseline of every other method."""

from __future__ import annotations

from ttac.spec import Method

METHOD = Method(
    name="source",
    title="the source model, no adaptation",
    paper="",
    needs="nothing",
    adapts=False,
)
