"""Count phrases that the plain English of this repository avoids, in everything that a person reads.

    python -m tests.support.prose_lint [FILE...]

The prose is docstrings, comments, strings with a space, and the pages.  A noun clause with "what" counts, and so does a
phrase of `AVOIDED`.  A question may use "what".  Code between backticks does not count.  The command fails above `BOUND` a
thousand words, and on a citation of a document that the repository does not have.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("ttac", "passes", "runtime", "tests", "benchmarks", "examples", "docs")
BOUND = 1.0
"""The most hits a thousand words, over the whole tree."""

WORST = 20
"""How many files the command prints."""

AVOIDED = re.compile(r"\b(told|tells of|hangs|gone|stands? for|lets? go|besides)\b", re.IGNORECASE)
WHAT = re.compile(r"\bwhat\b", re.IGNORECASE)
ABSENT = re.compile(r"\b(METHODS \d|DESIGN (section|\d)|STYLE (section|rule|\d))")
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
SENTENCE_END = re.compile(r"[.!?](?=[\s\"'`)*]|$)|\n\s*\n")
CODE = re.compile(r"^```.*?^```|``.+?``|`[^`\n]+(?:\n[^`\n]+)?`|<!--.*?-->|\]\([^)]*\)", re.DOTALL | re.MULTILINE)
EXCEPTED = ("prose_lint.py", "test_prose.py")
"""Files that quote the phrases."""


@dataclass(frozen=True)
class Hit:
    """A phrase to avoid: its line in the file, and the words around it."""

    path: Path
    line: int
    words: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.words}"


def pages() -> list[Path]:
    """Every file with prose, in order."""
    folders = [
        path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in (".py", ".md")
    ]
    return [*sorted(ROOT.glob("*.md")), *(path for path in folders if path.name not in EXCEPTED)]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each piece of prose of a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield 1, text
        return
    yield from comments(text)
    yield from ((line, words) for line, words in strings(ast.parse(text)) if is_prose(words))


def strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each string below `node`; `…` takes the place of a value in an f-string."""
    if isinstance(node, ast.JoinedStr):
        yield node.lineno, "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from strings(child)


def is_prose(text: str) -> bool:
    """Whether a string is for people: words with spaces, and no ONNX graph."""
    return " " in text.strip() and "=> (" not in text and "ir_version" not in text


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each block of comments; comments on neighbouring lines are one block."""
    start, block = 0, ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if block and line == start + block.count("\n"):
            block += token.string.lstrip("# ") + "\n"
            continue
        if block:
            yield start, block
        start, block = line, token.string.lstrip("# ") + "\n"
    if block:
        yield start, block


def without_code(text: str) -> str:
    """The text with code blanked out; its lines stay where they are."""
    return CODE.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def phrases(text: str) -> Iterator[re.Match[str]]:
    """Each phrase to avoid."""
    yield from AVOIDED.finditer(text)
    yield from (match for match in WHAT.finditer(text) if not in_question(text, match.end()))


def in_question(text: str, place: int) -> bool:
    """Whether the sentence that goes on at `place` ends with a question mark."""
    end = SENTENCE_END.search(text, place)
    return end is not None and end.group() == "?"


def hits(path: Path) -> tuple[list[Hit], int]:
    """The phrases to avoid in a file, and its number of words."""
    found, words = [], 0
    for line, text in prose(path):
        plain = without_code(text)
        words += len(WORD.findall(plain))
        for match in phrases(plain):
            around = " ".join(plain[max(0, match.start() - 40) : match.end() + 40].split())
            found.append(Hit(path, line + plain.count("\n", 0, match.start()), around))
    return found, words


def citations(path: Path) -> list[Hit]:
    """The citations of documents that the repository does not have."""
    return [
        Hit(path, line + text.count("\n", 0, match.start()), match.group())
        for line, text in prose(path)
        for match in ABSENT.finditer(text)
    ]


def per_thousand(found: int, words: int) -> float:
    return 1000 * found / max(words, 1)


def report(files: dict[Path, tuple[list[Hit], int]]) -> float:
    """Print the worst files; returns the hits a thousand words over all files."""
    ranked = sorted(files.items(), key=lambda entry: -len(entry[1][0]))
    for path, (found, words) in ranked[:WORST]:
        if found:
            print(f"{len(found):5} {per_thousand(len(found), words):6.1f}  {path.relative_to(ROOT)}")
    total, words = sum(len(found) for found, _ in files.values()), sum(words for _, words in files.values())
    print(
        f"prose: {total} phrases to avoid in {words} words, {per_thousand(total, words):.2f} a thousand (at most {BOUND})"
    )
    return per_thousand(total, words)


def main(names: list[str]) -> int:
    if names:
        shown = [hit for name in names for hit in [*hits(ROOT / name)[0], *citations(ROOT / name)]]
        print(*shown, sep="\n")
        return bool(shown)
    absent = [hit for path in pages() for hit in citations(path)]
    print(*absent, sep="\n", end="\n" if absent else "")
    return report({path: hits(path) for path in pages()}) > BOUND or bool(absent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
