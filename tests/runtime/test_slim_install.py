"""The distribution `ttac-runtime`: the device half alone runs a bundle beside three packages."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from tests.support.prose_lint import ROOT
from tests.support.whole_models import MODELS, compiled, samples

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RUN = """
import sys
sys.path += sys.argv[1:3]
import numpy as np
import ttac
inputs = np.load("inputs.npy")
adapter = ttac.load(sys.argv[3], threads=1)
np.save("logits.npy", [adapter.step(x) for x in inputs])
print(ttac.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel of `runtime/pyproject.toml`, built from a copy of the tree."""
    folder = tmp_path_factory.mktemp("slim")
    kept = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    for name in ("ttac", "runtime"):
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=kept)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", folder, folder / "tree" / "runtime"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("ttac_runtime-*.whl")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to numpy, safetensors and onnxruntime, and to nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("numpy", "safetensors", "onnxruntime"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        place = Path(spec.origin).parent
        for path in (place, place.with_name(f"{name}.libs")):
            if path.exists():
                (folder / path.name).symlink_to(path)
    return folder


def test_the_device_half_alone_runs_a_bundle(wheel: Path, packages: Path, tmp_path: Path) -> None:
    bundle = compiled(MODELS["mobilenet_v3"], tmp_path, batch=4, method="tent")
    expected = ttac.load(bundle, threads=1)
    inputs = np.stack([samples(expected.input_shape, 4, seed=i) for i in range(3)])
    np.save(tmp_path / "inputs.npy", inputs)
    command = [sys.executable, "-I", "-S", "-c", RUN, str(wheel), str(packages), str(bundle)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ttac.__version__
    # Only this environment has the native operators, which round otherwise.
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), [expected.step(x) for x in inputs], rtol=0, atol=1e-4)


def read_project(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return table


def test_both_distributions_state_the_same_bounds() -> None:
    whole, slim = (read_project(ROOT / name) for name in ("pyproject.toml", "runtime/pyproject.toml"))
    assert slim["version"] == whole["version"]
    assert (slim["requires-python"], whole["requires-python"]) == (">=3.9", ">=3.10"), "devices have older Pythons"
    assert set(slim["dependencies"]) <= set(whole["dependencies"])
    assert slim["optional-dependencies"]["ort"] == whole["optional-dependencies"]["ort"]


NEWER = {"kw_only", "slots", "strict"}
"""Arguments of `dataclass` and `zip` that Python 3.9 lacks."""
SOURCES = (*sorted((ROOT / "runtime").rglob("*.py")), ROOT / "ttac" / "__init__.py", ROOT / "ttac" / "errors.py")


def newer_words(source: str) -> list[str]:
    """The words of `source` that Python 3.9 lacks; annotations are never evaluated."""
    tree = ast.parse(source, feature_version=(3, 9))
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("dataclass", "zip"):
            found += [str(word.arg) for word in node.keywords if word.arg in NEWER]
        if isinstance(node, ast.ImportFrom) and node.module == "typing":
            found += [name.name for name in node.names if name.name in ("TypeAlias", "ParamSpec", "TypeGuard")]
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr):
            found += [text for text in [ast.unparse(node.value)] if re.match(r"(str|int|float|[A-Z][a-z]\w*)\b", text)]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_device_half_is_written_for_python_3_9(path: Path) -> None:
    assert newer_words(path.read_text(encoding="utf-8")) == []


def test_newer_words_are_found() -> None:
    source = "from typing import TypeAlias\nWord = Run | When\n@dataclass(kw_only=True)\nclass A:\n  b: list[zip(a, strict=True)]"
    assert sorted(newer_words(source)) == ["Run | When", "TypeAlias", "kw_only", "strict"]


def test_no_engine_is_a_dependency() -> None:
    """pip would replace the engine of a device or of another project."""
    for name in ("pyproject.toml", "runtime/pyproject.toml"):
        assert not [entry for entry in read_project(ROOT / name)["dependencies"] if "onnxruntime" in entry]
