"""The pages of `docs/`: marked blocks run, quoted messages are those of the source, links and commands exist.

`<!-- run -->` before a block: console lines that begin with `$ ttac`, or Python, are executed, in the page's order and in
one folder; the lines under a command are its output.  `<!-- run: timm -->` needs that package.  `<!-- file: NAME -->`
writes the block to that file.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.documents.test_readme import console
from tests.support import architecture_picture, command_reference
from ttac import methods
from ttac.cli import commands
from ttac.cli.demonstrating import copied

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
BLOCK = re.compile(r"^<!-- (run|run: \w+|file: [\w./-]+) -->\n```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
EXECUTED = ["add-a-method.md", "add-a-target.md", "add-an-operator.md", "index.md", "memory.md", "tutorial.md"]
PLACEHOLDERS = ("ttac/methods/NAME", "ttac/methods/sure/")
TORCHVISION = """\
# Wheels of torchvision from PyPI do not load their compiled operators beside a CPU build of torch, and fail to import
# because two names are missing; nothing here calls them.
import contextlib, warnings
with contextlib.suppress(ImportError):
    from torch import library
    try:
        import torchvision
    except RuntimeError:
        missing = library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            missing.define(name + "(Tensor x) -> Tensor")
"""


def test_these_pages_have_blocks_to_run() -> None:
    assert [name for name, text in PAGES.items() if BLOCK.search(text)] == EXECUTED


@pytest.mark.slow
@pytest.mark.parametrize("page", EXECUTED)
def test_the_blocks_of_a_page_in_their_order(page: str, run: Run, tmp_path: Path) -> None:
    copied(tmp_path)
    for mark, language, text in BLOCK.findall(PAGES[page]):
        kind, _, value = mark.partition(": ")
        if kind == "file":
            (tmp_path / value).parent.mkdir(exist_ok=True)
            (tmp_path / value).write_text(text, encoding="utf-8")
        elif not value or has(value):
            execute(language, text, run, tmp_path)


def has(package: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "onnxscript", package))


def execute(language: str, text: str, run: Run, folder: Path) -> None:
    if language == "console":
        console(text, run)
        return
    assert language == "python"
    done = subprocess.run(
        [sys.executable, "-c", (TORCHVISION if "torch" in text else "") + text],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- troubleshooting --------------------------------------------------------------------------------------------------


def quoted() -> list[str]:
    """The messages of the page's tables: the text in double backticks in the first column."""
    rows = re.findall(r"^\| (``.*?) \| ", PAGES["troubleshooting.md"], flags=re.MULTILINE)
    return [message.strip() for row in rows for message in re.findall(r"``(.+?)``(?!`)", row)]


def messages() -> set[str]:
    """Every text of the source, with `…` for its values."""
    files = [path for folder in ("ttac", "passes", "runtime") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return {text for node in nodes for text in texts(node)}


def texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def test_every_quoted_message_is_one_of_the_source() -> None:
    found, known = quoted(), messages()
    assert len(found) > 40
    assert [message for message in found if message not in known] == []


# --- names on the pages -----------------------------------------------------------------------------------------------


def test_every_method_has_a_section() -> None:
    assert set(re.findall(r"^## ([\w-]+)$", PAGES["methods.md"], flags=re.MULTILINE)) >= set(methods.names())


def test_every_command_and_option_exists() -> None:
    for page, text in PAGES.items():
        for line in re.findall(r"^\$ (ttac .*)$", text, flags=re.MULTILINE):
            _, name, *arguments = shlex.split(line)
            assert name in commands.commands, (page, line)
            known = options(name)
            for argument in arguments:
                assert not argument.startswith("--") or argument.partition("=")[0] in known, (page, line)


def options(name: str) -> set[str]:
    import click

    command = commands.commands[name]
    context = command.make_context(name, [], resilient_parsing=True)
    assert isinstance(context, click.Context)
    return {option for parameter in context.command.get_params(context) for option in parameter.opts}


def test_the_command_reference_is_up_to_date() -> None:
    hint = "`python -m tests.support.command_reference` writes it again"
    assert PAGES["commands.md"] == command_reference.reference(), hint


def test_the_picture_of_the_architecture_is_up_to_date() -> None:
    hint = "`python -m tests.support.architecture_picture` draws it again"
    assert architecture_picture.PICTURE.read_text(encoding="utf-8") == architecture_picture.picture(), hint


def test_every_named_file_and_folder_exists() -> None:
    """Also folders, except for a placeholder and the folder that a reader of `add-a-method.md` makes."""
    named = re.compile(r"`((?:ttac|passes|runtime|tests|benchmarks|examples)/[\w/.-]*)`")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for name in named.findall(path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists() or name in PLACEHOLDERS, (path.name, name)


def test_every_link_leads_somewhere() -> None:
    for folder in ("", "decisions"):
        for path in (ROOT / "docs" / folder).glob("*.md"):
            for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", path.read_text(encoding="utf-8")):
                assert (path.parent / target).exists(), (path.name, target)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert [
        str(page) for page in pages if not re.search(rf"(^|[\s:]){re.escape(str(page))}$", navigation, re.MULTILINE)
    ] == []


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link)[^>]*(?:src|href)=\"https?://", page), "the site fetches nothing"
