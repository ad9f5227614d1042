"""The tables that `ttac eval` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ttac.cli.terminal import Terminal

if TYPE_CHECKING:
    from ttac.evaluation.evaluation_result import Evaluation
    from ttac.evaluation.tables import Table


def show_tables(terminal: Terminal, evaluation: Evaluation) -> None:
    """Print one table for each setting: the shifts, their mean, and the other figures."""
    if evaluation.results and not evaluation.labelled:
        terminal.say("note: the samples have no labels; there are entropy and drift, but no error")
    for number, table in enumerate(evaluation.tables()):
        if number:
            terminal.show()
        setting = table.setting
        title = f"{setting['model']}, {setting['protocol']}, {setting['order']}, batch {setting['batch']}"
        names = [table.column, *(f"{method}>" for method in table.methods)]
        terminal.table(names, _rows(table), title=title)


def _rows(table: Table) -> list[list[str]]:
    from ttac.evaluation.tables import figure_text, total_rows

    shifts = {**table.errors, "mean": table.means}
    rows = [[name, *(figure_text(table, row.get(m)) for m in table.methods)] for name, row in shifts.items()]
    return [*rows, *([name, *cells] for name, cells in total_rows(table))]
