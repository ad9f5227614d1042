"""The errors of ttac: each names the problem, the place, and one thing to try.

The exit codes are part of the contract of the command line.
"""

from __future__ import annotations


class TtacError(Exception):
    """An error with a place and a way out.

    Args:
        problem: one sentence without a full stop.
        where: the file, node or option it happened at; may span lines.
        hint: one thing to try.
    """

    exit_code = 1

    def __init__(self, problem: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(problem)
        self.problem, self.where, self.hint = problem, where, hint

    def __str__(self) -> str:
        text = self.problem + (f"\n  at {self.where}" if self.where else "")
        return text + (f"\n\nhint: {self.hint}" if self.hint else "")


class UsageError(TtacError):
    """A wrong argument, option, path or input array."""

    exit_code = 2


class UnsupportedError(TtacError):
    """The model, an operator or a method that does not fit them."""

    exit_code = 3


class BudgetError(TtacError):
    """The memory budget cannot be met."""

    exit_code = 4


class RuntimeMissingError(TtacError):
    """The environment lacks an engine or has one known to be bad."""

    exit_code = 5


class VerificationError(TtacError):
    """Numbers that must agree differ, or a file of a bundle does not fit its manifest."""

    exit_code = 6
