"""The form with kernels: chosen where its library is sound, refused with a reason elsewhere; the numbers are the same."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.tiny_bundles import read
from tests.support.whole_models import MODELS, compiled, samples
from ttac.errors import RuntimeMissingError, VerificationError
from ttac.passes.blocked.probe import engine_block
from ttac.passes.kernels.linked_graphs import OLDEST, VERSION
from ttac.runtime import form_cache, forms
from ttac.runtime.bundle import write_manifest
from ttac.runtime.kernel_library import PACKAGE, kernel_library

DEMO = Path(ttac.__file__).parent / "demo"
METHODS = ["tent", "sar", "eata", "bn", "deyo", "surgeon", "dropit"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of("tent", tmp_path_factory.mktemp("kernels"))


def bundle_of(method: str, folder: Path) -> Path:
    calibration = DEMO / "fashion_calibration.npz"
    return compiled(DEMO / "fashion_resnet_bn.onnx", folder, method=method, batch=8, calibration=calibration)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "copy.ttac", ignore=shutil.ignore_patterns(form_cache.FILE))


def package(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: int = VERSION,
    content: bytes = b"\x7fELF",
    oldest: int = OLDEST,
) -> Path:
    """Put a package in the place of the installed one; its library holds `content`, its digest is that of an ELF head."""
    made = types.ModuleType(PACKAGE)
    path = folder / "library.so"
    path.write_bytes(content)
    digest = hashlib.sha256(b"\x7fELF").hexdigest()
    facts = {
        "__version__": "0.0",
        "DOMAIN_VERSION": version,
        "OLDEST_VERSION": oldest,
        "library_path": lambda: path,
        "library_digest": lambda: digest,
    }
    made.__dict__.update(facts)
    monkeypatch.setitem(sys.modules, PACKAGE, made)
    return path


def batches() -> list[np.ndarray]:
    return [samples((1, 28, 28), size, seed) for seed, size in enumerate([8, 8, 1, 8, 3])]


def needs_library() -> None:
    if kernel_library(VERSION).reason or not engine_block(kernels=True)[0]:
        pytest.skip("ttac-kernels does not run here")


def assert_equal_steps(adapter: ttac.Adapter, portable: ttac.Adapter) -> None:
    for x in batches():
        expected = portable.step(x)
        np.testing.assert_allclose(adapter.step(x), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def assert_refused(copy: Path, reason: str) -> None:
    """The bundle runs without kernels, with the same numbers, and says why."""
    adapter, portable = ttac.load(copy), ttac.load(copy, form="portable")
    assert_equal_steps(adapter, portable)
    assert not adapter.stats["form"].startswith("kernels") and reason in adapter.stats["form_reason"]
    with pytest.raises(RuntimeMissingError, match="no kernels form runs here"):
        ttac.load(copy, form="kernels")


@pytest.mark.parametrize("method", METHODS)
def test_five_steps_with_kernels_agree(method: str, tmp_path: Path) -> None:
    needs_library()
    folder = bundle_of(method, tmp_path)
    adapter = ttac.load(folder)
    assert adapter.stats["form"].startswith("kernels") and "form_reason" not in adapter.stats
    assert_equal_steps(adapter, ttac.load(folder, form="portable"))
    assert adapter.stats["form"].startswith("kernels"), adapter.stats


def test_an_absent_package_is_said(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    assert_refused(copy, "the package `ttac-kernels` is not installed")


def test_another_version_is_refused(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, version=VERSION + 1, oldest=VERSION + 1)
    assert_refused(copy, f"has version {VERSION + 1} of the operators, and the bundle needs 4")


def test_an_older_version_is_refused_where_it_lacks_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, version=OLDEST)
    assert f"has version {OLDEST} of the operators" in kernel_library(VERSION).reason
    assert "digest" in kernel_library(OLDEST).reason or kernel_library(OLDEST).path is not None


def test_version_4_does_not_run_sums_of_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_library()
    folder = compiled(MODELS["wide_resnet"], tmp_path, batch=8, method="tent")
    package(tmp_path, monkeypatch, version=4)
    adapter, portable = ttac.load(folder), ttac.load(folder, form="portable")
    x = samples((3, 16, 16))
    np.testing.assert_allclose(adapter.step(x), portable.step(x), rtol=0, atol=1e-4)
    assert not adapter.stats["form"].startswith("kernels")
    assert "has version 4 of the operators, and the bundle needs 5" in adapter.stats["form_reason"]


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"\x7fELF and more"])
def test_a_damaged_library_is_not_loaded(
    content: bytes, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, content=content)
    assert_refused(copy, "is damaged: `library.so` has another digest")


def test_a_missing_library_is_said(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch).unlink()
    assert_refused(copy, "cannot be read")


def test_a_library_that_the_engine_refuses(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch)
    assert_refused(copy, "does not load the operator library")


def test_a_processor_without_blocks_runs_portable_graphs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "probe_failure", lambda *_: "the engine has another block size")
    assert_refused(copy, "another block size")
    assert ttac.load(copy).stats["form"] == "portable"


def test_a_graph_that_the_engine_refuses(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_library()
    load = forms.form_weights

    def refuse(arrays: object, spec: object, folder: Path) -> object:
        if getattr(spec, "kernels", 0):
            raise RuntimeMissingError("no such operator")
        return load(arrays, spec, folder)  # type: ignore[arg-type]

    monkeypatch.setattr("ttac.runtime.loaded_form.form_weights", refuse)
    adapter = ttac.load(copy)
    assert adapter.stats["form"] == "portable" and "no such operator" in adapter.stats["form_reason"]
    assert_equal_steps(adapter, ttac.load(copy, form="portable"))


def test_the_memory_of_forms_knows_the_library(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_library()
    ttac.load(copy).step(batches()[0])
    package(tmp_path, monkeypatch, version=VERSION + 1, oldest=VERSION + 1)
    assert not ttac.load(copy).stats["form"].startswith("kernels")


def test_only_a_form_that_names_them_may_have_kernels(copy: Path) -> None:
    manifest = read(copy)
    for form in manifest["forms"]:
        form.pop("kernels", None)
    write_manifest(copy, {name: value for name, value in manifest.items() if name != "files"})
    with pytest.raises(VerificationError, match=r"of the operator domain `ttac\.kernels`"):
        ttac.load(copy)


def test_portable_graphs_have_no_kernels(copy: Path) -> None:
    manifest = read(copy)
    (form,) = [form for form in manifest["forms"] if form["name"] == "kernels-8"]
    manifest["graphs"]["forward"]["file"] = form["graphs"]["forward"]
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(VerificationError, match="operator domain"):
        ttac.load(copy)
