"""The small models of `tests/models`, their golden numbers, and the values of a compiled bundle's graphs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import ttac
from tests.support.tiny_bundles import read
from ttac import finish, methods, targets
from ttac.errors import TtacError
from ttac.passes.graph.execute import Executable
from ttac.passes.load.model_file import load
from ttac.passes.lower.lower import lower
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.norm_sites import NormSite, find_norms
from ttac.passes.step_graphs.guard import GUARD

HERE = Path(__file__).resolve().parents[1]
MODELS = {path.stem: path for path in sorted((HERE / "models").glob("*.onnx"))}
BATCH = 8
SINGLE = ir.DataType.FLOAT

Arrays = dict[str, np.ndarray]


def operators(graph: ir.Graph) -> list[str]:
    """Return the operators of the graph, in its order."""
    return [node.op_type for node in graph]


def samples(shape: Sequence[int], count: int = BATCH, seed: int = 0) -> np.ndarray:
    """Return the inputs of the golden numbers, float32 [count, *shape]; the stream of RandomState never changes."""
    return np.random.RandomState(seed).standard_normal((count, *shape)).astype(np.float32)


def golden(name: str) -> Arrays:
    """Return the golden numbers of a model, float64; see `tests/golden/make/model_gradients.py`."""
    with safe_open(HERE / "golden" / "models.safetensors", "np") as file:
        keys = [key for key in file.keys() if key.startswith(f"{name}/")]
        return {key.removeprefix(f"{name}/"): file.get_tensor(key) for key in keys}


def golden_gradients(name: str) -> Arrays:
    """Return the golden gradients of a model."""
    return under_our_names(golden(name))


def under_our_names(found: Arrays) -> Arrays:
    """Return the gradients among golden numbers, `gradient/0.branch.1.weight` as `0.branch.1.scale`."""
    named = {key.removeprefix("gradient/"): value for key, value in found.items() if key.startswith("gradient/")}
    return {f"{key.removesuffix('.weight')}.scale" if key.endswith(".weight") else key: v for key, v in named.items()}


def executed(folder: Path, x: np.ndarray) -> Arrays:
    """Return every value that the graphs of a bundle exchange in one step, by name; each graph runs separately."""
    manifest = read(folder)
    values = {**load_file(folder / "weights.safetensors"), **load_file(folder / manifest["state"]["file"])}
    values[manifest["inputs"][0]["name"]] = x
    for word in manifest["programs"]["step"]:
        if "run" in word:
            values |= Executable(folder / manifest["graphs"][word["run"]]["file"])(values)
    return values


def gradient_errors(found: Arrays, expected: Arrays) -> Arrays:
    """Return each parameter's gradient distance relative to the length of all gradients; "all" is the whole distance."""
    length = np.sqrt(sum(float((value**2).sum()) for value in expected.values()))
    apart = {name: np.linalg.norm(found[f"{name}.grad"].astype(np.float64) - value) for name, value in expected.items()}
    return {**{name: d / length for name, d in apart.items()}, "all": np.linalg.norm(list(apart.values())) / length}


def compiled(path: Path, folder: Path, **choices: Any) -> Path:
    """Compile a bundle below `folder`, without the measurement of its memory, which takes a separate process.

    The guard is off unless the settings name it: the oracles have none.
    """
    choices = without_guard(**choices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "measure", lambda *_, **__: None)
        bundle = ttac.compile(path, output=folder / f"{path.stem}-{len(list(folder.iterdir()))}.ttac", **choices)
    assert bundle.path is not None
    return bundle.path


def without_guard(**choices: Any) -> dict[str, Any]:
    """Return the choices of a compile with the guard off, unless they set it or the method has none."""
    guarded = any(option.name == GUARD for option in methods.find(choices.get("method", methods.DEFAULT)).options)
    return {**choices, "settings": {GUARD: "off", **choices.get("settings", {})}} if guarded else choices


def state_of(adapter: ttac.Adapter) -> Arrays:
    """Return the adapter's state from a file that it saves."""
    with tempfile.TemporaryDirectory() as folder:
        adapter.save(Path(folder) / "state.safetensors")
        return load_file(Path(folder) / "state.safetensors")


def normal(path: Path) -> ir.Model:
    """Return the file in normal form."""
    return normalise(load(path), simplifier=None)


def sites_of(model: ir.Model) -> list[NormSite]:
    return list(find_norms(model).sites)


def spelled(model: ir.Model) -> ir.Model:
    """Return a copy in standard operators."""
    return lower(model.clone(), targets.find("cpu"))


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(kind: type[TtacError], path: Path, **choices: Any) -> str:
    """Return the message of the refusal, after checks that no file was written and that the message has a hint."""
    before = everything(path.parent)
    with pytest.raises(kind) as caught:
        ttac.compile(path, **choices)
    assert everything(path.parent) == before
    assert caught.value.exit_code == kind.exit_code and caught.value.hint
    return str(caught.value)


def parameters_of(adapter: ttac.Adapter) -> Arrays:
    """Return the scales and biases of the adapter's state."""
    return {key: value for key, value in state_of(adapter).items() if key.endswith((".scale", ".bias"))}


def assert_close(found: Arrays, expected: Arrays, atol: float) -> None:
    """Check that two sets of arrays have the same names, and values at most `atol` apart."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)
