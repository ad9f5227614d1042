"""Information maximisation: certain predictions of each sample, and all classes in every batch.

Liang et al., "Do we really need to access the source data? Source hypothesis transfer for unsupervised domain
adaptation", ICML 2020: the loss alone, on a stream.  The paper trains all but the classifier, for epochs and with
pseudo-labels.  Here scale and bias of the norms train, one step a batch, as in online comparisons.
"""

from __future__ import annotations

from ttac.shared_options import STATISTICS, chosen_statistics, optimizer_options
from ttac.spec import Method

METHOD = Method(
    name="shot-im",
    title="certain predictions of each sample, and all classes in every batch",
    paper="arXiv:2002.08546",
    needs="norms of any kind, and batches of many samples of all classes in equal numbers",
    statistics=chosen_statistics,
    trains=True,
    loss="ttac.methods.shot_im.information:information",
    check="ttac.methods.shot_im.information:check",
    options=(*optimizer_options("adam", 1e-3), *STATISTICS),
    graphs={"update": "ttac.passes.step_graphs.optimizers:update"},
    program=({"run": "forward"}, {"run": "backward"}, {"run": "update"}, {"return": "logits"}),
    oracle="tests/golden/make/official_methods.py",
)
