"""Forms of a bundle: chosen by a probe, compared with the portable graphs, refused with a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from tests.support.tiny_bundles import read
from tests.support.whole_models import MODELS, compiled, samples, state_of
from ttac import blocked_form as written_forms
from ttac.errors import RuntimeMissingError, UsageError, VerificationError
from ttac.passes.blocked.probe import engine_block, probe
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.kernels.linked_graphs import VERSION
from ttac.reports.measure import measure
from ttac.runtime import executor, form_cache, forms
from ttac.runtime.bundle import write_manifest
from ttac.runtime.engine import open_session
from ttac.runtime.forms import probe_failure
from ttac.runtime.hash_check import digest_of
from ttac.runtime.kernel_library import kernel_library
from ttac.runtime.tensors import map_tensors

DEMO = Path(ttac.__file__).parent / "demo"
NET, CALIBRATION = DEMO / "fashion_resnet_bn.onnx", DEMO / "fashion_calibration.npz"
SGD = {"optimizer": "sgd", "lr": 0.01}
PLAIN_ONLY = ("leantta", *(["surgeon"] if kernel_library(VERSION).reason else []))
"""Methods that read most activations in the plain layout; sparse saves need the operator library."""
METHODS: dict[str, dict[str, Any]] = {
    "tent": {"settings": SGD, "memory_budget": "3MiB"},
    "sar": {"settings": {"lr": 0.01}},
    "eata": {"settings": SGD},
    "surgeon": {},
    "bn": {},
    "lame": {},
    "leantta": {},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with blocked graphs; skips where this engine has no blocked layout."""
    folder = tmp_path_factory.mktemp("forms")
    if not engine_block()[0]:
        pytest.skip("this engine has no blocked layout")
    return compiled(NET, folder, method="tent", batch=8, calibration=CALIBRATION, settings=SGD)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy in which no step has confirmed a form yet."""
    return shutil.copytree(bundle, tmp_path / "copy.ttac", ignore=shutil.ignore_patterns(form_cache.FILE))


def batches(count: int = 5) -> list[np.ndarray]:
    return [samples((1, 28, 28), size, seed) for seed, size in enumerate([8, 8, 1, 8, 3][:count])]


def test_five_steps_agree_with_the_portable_graphs(bundle: Path) -> None:
    blocked, portable = ttac.load(bundle, form="blocked"), ttac.load(bundle, form="portable")
    assert ttac.load(bundle).stats["form"].startswith(("blocked", "kernels"))
    assert blocked.stats["form"].startswith("blocked") and portable.stats["form"] == "portable"
    for x in batches():
        expected = portable.step(x)
        np.testing.assert_allclose(blocked.step(x), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    after = state_of(portable)
    for name, value in state_of(blocked).items():
        np.testing.assert_allclose(value, after[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert "form_reason" not in blocked.stats


def test_a_saved_state_fits_both_forms(bundle: Path, tmp_path: Path) -> None:
    blocked, portable = ttac.load(bundle, form="blocked"), ttac.load(bundle, form="portable")
    blocked.step(batches()[0])
    blocked.save(tmp_path / "state.safetensors")
    portable.restore(tmp_path / "state.safetensors")
    expected = portable.predict(batches()[1])
    np.testing.assert_allclose(blocked.predict(batches()[1]), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_an_engine_that_refuses_gets_portable_graphs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "probe_failure", lambda *_: "no such layout")
    adapter = ttac.load(copy)
    assert (adapter.stats["form"], adapter.stats["form_reason"]) == ("portable", "blocked-8: no such layout")
    with pytest.raises(RuntimeMissingError, match="no such layout"):
        ttac.load(copy, form="blocked")


def test_another_block_size_is_refused(tmp_path: Path) -> None:
    write_graphs(tmp_path, {"probe": probe(2, 18, 8)})
    assert probe_failure(tmp_path / "probe.onnx")


def test_other_logits_change_to_the_portable_graphs(copy: Path) -> None:
    manifest = read(copy)
    for form in manifest["forms"]:
        shifted = next(name for name in form["weights"] if "flipped" not in name and name.endswith("OIHWBiBo"))
        sizes = {name: entry["of"] for name, entry in form["weights"].items()}
        others = [of for name, of in sizes.items() if name != shifted]
        form["weights"][shifted]["of"] = _of_the_same_shape(copy, sizes[shifted], others)
    write_manifest(copy, manifest)
    adapter, portable = ttac.load(copy), ttac.load(copy, form="portable")
    for x in batches(3):
        np.testing.assert_array_equal(adapter.step(x), portable.step(x))
    assert adapter.stats["form"] == "portable" and "first outputs differ" in adapter.stats["form_reason"]


def _of_the_same_shape(folder: Path, name: str, others: list[str]) -> str:
    arrays, _ = map_tensors(folder / "weights.safetensors")
    alike = [other for other in others if arrays[other].shape == arrays[name].shape]
    return next(other for other in alike if not np.array_equal(arrays[other], arrays[name]))


def test_an_engine_that_fails_changes_to_the_portable_graphs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = ttac.load(copy)

    def fail(*_: Any) -> None:
        raise RuntimeMissingError("it stopped")

    monkeypatch.setattr(adapter._executor.form.graphs["forward"], "run", fail)
    expected = ttac.load(copy, form="portable").step(batches()[0])
    np.testing.assert_array_equal(adapter.step(batches()[0]), expected)
    assert "it stopped" in adapter.stats["form_reason"]
    assert not (copy / form_cache.FILE).exists()


def test_other_parameters_change_to_the_portable_graphs(copy: Path) -> None:
    manifest = read(copy)
    for form in manifest["forms"]:
        flipped = {name: entry for name, entry in form["weights"].items() if entry.get("groups") or "flipped" in name}
        shifted = next(name for name in flipped if name.endswith("OIHWBiBo"))
        others = [entry["of"] for name, entry in form["weights"].items() if name != shifted]
        flipped[shifted]["of"] = _of_the_same_shape(copy, flipped[shifted]["of"], others)
    write_manifest(copy, manifest)
    adapter = ttac.load(copy)
    adapter.step(batches()[0])
    assert adapter.stats["form"] == "portable" and "its first changes" in adapter.stats["form_reason"]


def test_a_confirmed_form_is_remembered(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ttac.load(copy)
    first.step(batches()[0])
    monkeypatch.setattr(form_cache, "_memory", {})
    monkeypatch.setattr(forms, "probe_failure", lambda *_: "it was asked again")
    second = ttac.load(copy)
    assert second.stats["form"] == first.stats["form"] != "portable"
    second.step(batches()[0])
    assert second._executor.reference is None
    monkeypatch.setattr(form_cache, "_processor", lambda: ["another processor"])
    assert "it was asked again" in ttac.load(copy).stats["form_reason"]


def test_without_a_comparison_only_the_form_is_loaded(copy: Path) -> None:
    adapter = ttac.load(copy, form="blocked", compare=False)
    assert adapter._executor.reference is None, "the portable graphs would need memory too"
    expected = ttac.load(copy, form="portable").step(batches()[0])
    np.testing.assert_allclose(adapter.step(batches()[0]), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_peak_of_a_form_is_its_own_and_near_its_plan(bundle: Path) -> None:
    """A plan counts bytes alive, which the engine's arena exceeds where free blocks do not fit."""
    peak = measure(bundle, steps=2, threads=1, form="blocked")
    if peak is None:
        pytest.skip("this system has no counters of memory")
    assert 0.7 < peak["peak"] / read(bundle)["memory"]["planned_blocked"]["peak"] < 1.4


def test_two_loads_probe_the_engine_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each load has its own descriptor of the folder, and so its own path of the probe."""
    probed: list[Path] = []
    monkeypatch.setattr(forms, "_failures", {})
    monkeypatch.setattr(
        forms, "open_session", lambda probe, **choices: probed.append(probe) or open_session(probe, **choices)
    )
    first = ttac.load(copy)
    count = len(probed)
    second = ttac.load(copy)
    assert first.stats["form"] == second.stats["form"] and len(probed) == count > 0


def test_the_first_step_needs_no_file_of_the_folder(copy: Path) -> None:
    adapter = ttac.load(copy)
    shutil.rmtree(copy)
    assert np.isfinite(adapter.step(batches()[0])).all()


def test_a_refused_form_is_remembered_with_its_reason(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "disagreement", lambda *_: "its logits differ")
    ttac.load(copy).step(batches()[0])
    monkeypatch.setattr(form_cache, "_memory", {})
    stats = ttac.load(copy).stats
    assert (stats["form"], stats["form_reason"]) == ("portable", "its logits differ")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"key": 1, "form": "blocked-16", "reason": ""}', b"\xff"])
def test_a_damaged_memory_counts_as_none(copy: Path, content: bytes) -> None:
    (copy / form_cache.FILE).write_bytes(content)
    adapter = ttac.load(copy)
    assert not adapter._executor.choice.confirmed
    adapter.step(batches()[0])
    assert json.loads((copy / form_cache.FILE).read_bytes())["form"] == adapter.stats["form"]


def test_a_link_in_the_place_of_the_memory_is_kept(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    (copy / form_cache.FILE).symlink_to(tmp_path / "precious")
    ttac.load(copy).step(batches()[0])
    assert (tmp_path / "precious").read_text() == "keep"


def test_a_read_only_folder_is_said_once(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise UsageError("cannot write the file: Read-only file system")

    monkeypatch.setattr(form_cache, "write_whole", refuse)
    for _ in range(3):
        adapter = ttac.load(copy)
        adapter.step(batches()[0])
        assert adapter.stats["form"] != "portable"
    assert [record.message.count("Read-only") for record in caplog.records] == [1]


def test_unknown_forms_are_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match="there is no form 'fast'"):
        ttac.load(bundle, form="fast")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("block", 0, "block` is 0"),
        ("probe", "weights.safetensors", "not an `.onnx` file"),
        ("graphs", {"nothing": "forward.onnx"}, "has `nothing`"),
        ("weights", {"w": {"of": "w", "order": "HWIO"}}, "order` is 'HWIO'"),
        ("weights", {"w": {"of": "w", "order": "OIHWBo", "taps": [[0]]}}, "1 axes, not 2"),
        ("name", "portable", "twice"),
    ],
)
def test_invalid_entries_are_refused(copy: Path, key: str, value: Any, problem: str) -> None:
    manifest = read(copy)
    manifest["forms"][0][key] = value
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(VerificationError, match=problem):
        ttac.load(copy)


def test_weights_that_do_not_fit_are_refused(copy: Path) -> None:
    manifest = read(copy)
    for form in manifest["forms"]:
        next(iter(form["weights"].values()))["of"] = "nothing"
    write_manifest(copy, manifest)
    with pytest.raises(VerificationError, match="cannot be made of the stored weights"):
        ttac.load(copy)


def test_each_blocked_file_is_listed_with_its_digest(bundle: Path) -> None:
    manifest = read(bundle)
    for form in manifest["forms"]:
        for file in (form["probe"], *form["graphs"].values()):
            assert manifest["files"][file] == digest_of(bundle / file)


def test_a_form_with_other_numbers_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_forms, "_disagreement", lambda *_: "its logits differ")
    folder = compiled(NET, tmp_path, method="tent", batch=8, calibration=CALIBRATION)
    assert "forms" not in read(folder) and not list(folder.glob("*blocked*"))


def test_networks_without_gain_have_one_form(tmp_path: Path) -> None:
    assert "forms" not in read(compiled(MODELS["densenet"], tmp_path, method="tent", batch=8))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_same_numbers(method: str, bundle: Path, tmp_path: Path) -> None:
    folder = compiled(NET, tmp_path, method=method, batch=8, calibration=CALIBRATION, **METHODS[method])
    auto, portable = ttac.load(folder), ttac.load(folder, form="portable")
    assert (auto.stats["form"] == "portable") == (method in PLAIN_ONLY)
    for x in batches(3):
        expected = portable.step(x)
        np.testing.assert_allclose(auto.step(x), expected, rtol=0, atol=1e-3 * np.abs(expected).max())
