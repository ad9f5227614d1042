"""The errors of ttac: each names the problem, the place, and one thing to try.

The exit codes are part of the contract of the command line.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with control characters other than line breaks escaped, so that no name can steer a terminal."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class TtacError(Exception):
    """An error with a place and a way out.

    Args:
        problem: one sentence without a full stop.
        where: the file, node or option it happened at; may span lines.
        hint: one thing to try.
    """

    exit_code = 1

    def __init__(self, problem: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(printable(problem))
        self.problem, self.where, self.hint = printable(problem), printable(where), printable(hint)

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
