"""The prose lint counts noun clauses and avoided phrases, and neither questions nor code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import prose_lint

COUNTED = {
    "Return what the node reads.": 1,
    "What is kept depends on the budget. What is dropped does not.": 2,
    "What is a bundle?": 0,
    "It asks what a bundle is? It says what it says.": 1,
    "Errors have `what` and `where`.": 0,
    "The room is told; the value hangs on it.": 2,
    "A stands for B, and is gone besides.": 3,
    "Lets the tensor go.": 0,
    "Whatever the order, somewhat.": 0,
}


@pytest.mark.parametrize("text", COUNTED)
def test_phrases_of_a_sentence(text: str) -> None:
    assert len(list(prose_lint.phrases(prose_lint.without_code(text)))) == COUNTED[text]


def test_prose_of_a_module(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""Two words."""\n# a comment\n# goes on\nx = f"there is `{x}` here"\ny = "word"  # apart\n')
    found = [(line, text.strip()) for line, text in prose_lint.prose(path)]
    assert found == [(2, "a comment\ngoes on"), (5, "apart"), (1, "Two words."), (4, "there is `…` here")]


def test_code_of_a_page_is_left_out() -> None:
    text = "Words.\n\n```console\n$ what\n```\n\n[what](what.md) and `a\nwhat` and ``what ` it``"
    assert [match.group() for match in prose_lint.phrases(prose_lint.without_code(text))] == ["what"]


def test_citations_of_absent_documents(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("See METHODS 6 and DESIGN section 5.\nMETHODS is a word.\n")
    assert [hit.words for hit in prose_lint.citations(path)] == ["METHODS 6", "DESIGN section"]
