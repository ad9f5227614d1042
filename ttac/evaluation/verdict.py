"""The verdict of an evaluation, as one or two sentences for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ttac.evaluation.subjects import SOURCE
from ttac.evaluation.tables import Table, figure_text


def verdict(tables: Sequence[Table]) -> str:
    """Return the method with the lowest mean error, its distance from the source model, and its time.

    For several settings, the number of settings in which a method is the best one.  Without labels, no method is
    called better, because no entropy shows an error.
    """
    if not tables:
        return "No method ran."
    if not all(table.labelled for table in tables):
        return "The samples have no labels, so the report compares entropy, drift, time and memory, and no errors."
    if len(tables) == 1:
        return _verdict(tables[0])
    wins = Counter(best for table in tables if (best := _best(table)))
    counts = ", ".join(f"{method} in {count}" for method, count in wins.most_common())
    return f"Lowest mean {tables[0].figure} in {len(tables)} settings: {counts}."


def _best(table: Table) -> str:
    """The method with the lowest mean; the source model where no other is below it; empty without figures."""
    means = {method: mean for method, mean in table.means.items() if mean is not None}
    return min(means, key=lambda method: (means[method], method != SOURCE), default="")


def _verdict(table: Table) -> str:
    best, means = _best(table), table.means
    if not best:
        return "No method has a figure."
    text = f"{best} has the lowest mean {table.figure}, {figure_text(table, means[best])} %"
    source, own = means.get(SOURCE), means[best]
    if best == SOURCE:
        return f"No method is better than the source model: {text}."
    if source is None or own is None:
        return f"{text}."
    times = table.totals["ms_per_sample"]
    mine, inference = times.get(best), times.get(SOURCE)
    slower = f" A sample takes {mine / inference:.1f} times as long." if mine and inference else ""
    return f"{text}, {100 * (source - own):.1f} points below the source model.{slower}"
