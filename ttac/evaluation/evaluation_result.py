"""`Evaluation`: all results of a call of `ttac.evaluate`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttac.errors import TtacError
from ttac.evaluation.cells import Cell
from ttac.evaluation.tables import COLUMNS, Table, is_labelled, rows_of, tables_of


@dataclass(frozen=True)
class MissingCell:
    """A cell without a result, and the reason."""

    cell: Cell
    reason: TtacError


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All results, in the order of the models, methods and streams of the call.

    Attributes:
        results: one mapping for each cell, as `docs/evaluation.md` describes them.
        missing: cells without a result, mostly because a method does not fit a model.
        reports: (model, method, batch) -> report of the bundle, with the memory plan.
        data: name of the samples.
        about: date, machine, packages and threads of the measured times; the command, where there was one.
    """

    results: Sequence[Mapping[str, Any]]
    missing: Sequence[MissingCell] = ()
    reports: Mapping[tuple[str, str, int], Mapping[str, Any]] = field(default_factory=dict)
    data: str = ""
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether there are errors; without labels there are entropy, drift, time and memory."""
        return is_labelled(self.results)

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping with the keys `ttac.evaluation.tables.COLUMNS` for every shift of every cell."""
        return rows_of(self.results)

    def tables(self) -> list[Table]:
        """Return one table for each setting: model, protocol, order and batch."""
        return tables_of(self.rows())

    def as_json(self) -> dict[str, Any]:
        """Return everything for a program: the rows, and the reasons of the missing cells."""
        missing = [
            {
                "model": each.cell.subject.model,
                "method": each.cell.subject.method,
                "batch": each.cell.subject.batch,
                "protocol": each.cell.protocol,
                "reason": each.reason.problem,
                "exit_code": each.reason.exit_code,
            }
            for each in self.missing
        ]
        return {
            "data": self.data,
            "about": dict(self.about),
            "labelled": self.labelled,
            "rows": self.rows(),
            "missing": missing,
        }

    def csv(self) -> str:
        """Return the rows as comma-separated values with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()

    def html(self) -> str:
        """Return one HTML page with all tables and plots; raises RuntimeMissingError without the extra `eval`."""
        from ttac.evaluation.html_report import page

        reasons = {(m.cell.subject.model, m.cell.subject.method): m.reason.problem for m in self.missing}
        missing = [(model, method, reason) for (model, method), reason in reasons.items()]
        facts = {"data": self.data, "about": self.about}
        return page(self.tables(), self.results, missing=missing, reports=self.reports, facts=facts)

    def write_html(self, path: str | Path) -> None:
        """Write the page of `html` to a file; raises RuntimeMissingError without the extra `eval`."""
        Path(path).write_text(self.html(), encoding="utf-8")
