"""Methods as values: every reference leads to a function, every oracle exists, and a list of methods imports little."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ttac import methods
from ttac.spec import Method, Reference, function_of

ROOT = Path(__file__).resolve().parents[2]
LISTED = """
import sys
from ttac import methods
assert all(methods.find(name).title for name in methods.names())
print(sorted({"onnx", "onnx_ir", "networkx", "onnxruntime", "numpy"} & {name.split(".")[0] for name in sys.modules}))
"""


def references(method: Method) -> Iterator[Reference]:
    """All references of a method, and of its variants."""
    for fields in ({}, *method.variants.values()):
        values = {**vars(method), **fields}
        hooks = [values[name] for name in ("choose_trained", "check", "refine", "constants")]
        yield from [hook for hook in hooks if hook]
        yield from values["graphs"].values()
        if ":" in values["loss"]:
            yield values["loss"]


@pytest.mark.parametrize("name", methods.names())
def test_every_reference_leads_to_a_function(name: str) -> None:
    for reference in references(methods.find(name)):
        assert callable(function_of(reference)), reference


@pytest.mark.parametrize("name", [name for name in methods.names() if name != "source"])
def test_every_method_names_an_oracle_that_exists(name: str) -> None:
    file, _, what = methods.find(name).oracle.partition(":")
    assert what in (ROOT / file).read_text(encoding="utf-8")


def test_a_list_of_methods_imports_no_graph_library() -> None:
    done = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
