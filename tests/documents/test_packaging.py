"""The distributions: metadata, a source distribution with its tests, and the files of the container."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = {name: tomllib.loads((ROOT / name).read_text()) for name in ("pyproject.toml", "runtime/pyproject.toml")}


@pytest.mark.parametrize("project", PROJECTS.values(), ids=PROJECTS)
def test_the_metadata_names_authors_and_versions(project: dict[str, Any]) -> None:
    facts = project["project"]
    assert facts["authors"] == [{"name": "ttac contributors"}]
    versions = [line.rpartition(" ")[2] for line in facts["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    first = facts["requires-python"].removeprefix(">=")
    assert versions == [f"3.{minor}" for minor in range(int(first.partition(".")[2]), 15)]
    assert not any(line.startswith("License ::") for line in facts["classifiers"]), "the key `license` says it"


def test_the_files_of_the_container_exist() -> None:
    text = (ROOT / "Dockerfile").read_text()
    extras = re.findall(r"EXTRAS=([\w-]+)", text)
    assert extras and set(extras) <= set(PROJECTS["pyproject.toml"]["project"]["optional-dependencies"])
    assert 'ENTRYPOINT ["ttac"]' in text and PROJECTS["pyproject.toml"]["project"]["scripts"]["ttac"]


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git names the files of a checkout; this is none")
def test_the_source_distribution_has_its_tests(tmp_path: Path) -> None:
    """Every file of the checkout is in the archive, and nothing that git ignores."""
    copy = tmp_path / "checkout"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    build = "import setuptools.build_meta as b, sys; b.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=copy, check=True, capture_output=True)
    (archive,) = tmp_path.glob("ttac-*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {name for name in files if name} <= names
    assert not any("node_modules" in name or "__pycache__" in name for name in names)
