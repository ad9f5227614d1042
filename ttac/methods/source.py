"""The source model: stored statistics, nothing learned.  The baseline of every other method."""

from __future__ import annotations

from ttac.shared_options import ESTIMATE, PRIOR_CORRECTION
from ttac.spec import Method

METHOD = Method(
    name="source",
    title="the source model, no adaptation",
    paper="",
    needs="nothing",
    adapts=False,
    options=(PRIOR_CORRECTION, ESTIMATE),
)
