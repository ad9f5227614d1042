"""The checks of a change: the commands of the workflow, of `.ci/run` and of pre-commit exist."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def parsed(name: str) -> dict[str, Any]:
    """Return a YAML file of the repository as a dict."""
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_the_workflow_runs_scripts_that_exist() -> None:
    jobs = parsed(".github/workflows/ci.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_workflow_runs_every_python_that_make_accepts() -> None:
    versions = parsed(".github/workflows/ci.yml")["jobs"]["check"]["strategy"]["matrix"]["python"]
    (bounds,) = re.findall(r"\((\d), (\d+)\) <= sys.version_info\[:2\] <= \((\d), (\d+)\)", MAKEFILE)
    major, first, _, last = (int(bound) for bound in bounds)
    assert versions == [f"{major}.{minor}" for minor in range(first, last + 1)]


def test_the_script_makes_targets_that_exist() -> None:
    (line,) = re.findall(r"^exec make (.*)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), flags=re.MULTILINE)
    targets = [word for word in line.split() if not word.startswith("-")]
    assert targets and set(targets) <= set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))


def test_the_hooks_run_tools_that_exist() -> None:
    """Each hook runs ruff, a module of the tests, or pytest on files of the tests."""
    hooks = [hook for repository in parsed(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    assert hooks
    for hook in hooks:
        tool, *words = shlex.split(hook["entry"])
        assert tool in (".venv/bin/ruff", ".venv/bin/python") and hook["language"] == "system"
        if tool.endswith("python"):
            assert words[0] == "-m" and (words[1] == "pytest" or module(words[1]).exists()), hook["id"]
        assert all((ROOT / word).exists() for word in words if "/" in word), hook["id"]


def module(name: str) -> Path:
    return ROOT / Path(*name.split(".")).with_suffix(".py")
