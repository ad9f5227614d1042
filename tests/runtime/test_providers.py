"""Execution providers: their names, the check of their presence, and the graphs that run on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.conftest import Run
from tests.support import tiny_bundles as tiny
from ttac.errors import RuntimeMissingError, UsageError, VerificationError
from ttac.reports.placement import placements
from ttac.runtime.engine import EngineDevice, EngineSettings, Session, present
from ttac.runtime.engine_import import engine
from ttac.runtime.manifest import parse_manifest
from ttac.runtime.providers import CPU, chosen_providers, device_of, only_cpu, parse_providers

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
ALL = (TENSORRT, CUDA, CPU)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny.ema(tmp_path / "tiny.ttac")


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (["cpu"], [CPU]),
        (["cuda"], [CUDA, CPU]),
        (["TensorRT", "cuda", "cpu"], [TENSORRT, CUDA, CPU]),
        ([(CUDA, {"device_id": 1})], [(CUDA, {"device_id": 1}), CPU]),
        ([("cpu", {})], [(CPU, {})]),
        (["cuda", "cpu", CUDA, "cpu"], [CUDA, CPU]),
    ],
)
def test_names_become_those_of_the_engine(wanted: list[str], chosen: list[str]) -> None:
    assert chosen_providers(wanted, ALL, "1.23") == chosen


def test_unknown_and_missing_providers_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean `cuda`"):
        chosen_providers(["cudaa"], ALL, "1.23")
    with pytest.raises(RuntimeMissingError, match=r"onnxruntime 1\.23 has no `CUDAExecutionProvider`") as caught:
        chosen_providers(["cuda"], [CPU], "1.23")
    assert "pip install onnxruntime-gpu" in str(caught.value.hint)
    with pytest.raises(UsageError, match="a name of a provider is empty"):
        parse_providers("cuda,,cpu")


def test_memory_and_forms_follow_the_first_provider() -> None:
    assert [device_of(p) for p in ((), ("cpu",), ("openvino", "cpu"), (TENSORRT, CPU))] == ["cpu", "cpu", "cpu", "cuda"]
    assert only_cpu(["cpu", (CPU, {})]) and not only_cpu(["cuda", "cpu"])


def test_a_session_keeps_its_providers(bundle: Path) -> None:
    session = ttac.InferenceSession(bundle, providers=[CPU], provider_options=[{"arena_extend_strategy": "0"}])
    assert session.get_providers() == [CPU]
    assert session.get_provider_options() == {CPU: {"arena_extend_strategy": "0"}}
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], ttac.load(bundle, providers=["cpu"]).step(x))


def test_a_session_leaves_out_a_missing_provider(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert ttac.InferenceSession(bundle, providers=[CUDA, CPU]).get_providers() == [CPU]
    assert "the engine has no CUDAExecutionProvider" in caplog.text
    with pytest.raises(RuntimeMissingError, match="has no `CUDAExecutionProvider`"):
        ttac.InferenceSession(bundle, providers=[CUDA])


def test_a_target_names_the_providers(run: Run, bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The engine's ones run, with a warning of the others; an argument has priority, and `doctor` refuses."""
    manifest = tiny.read(bundle)
    manifest["target"]["providers"] = ["cuda", "cpu"]
    tiny.reseal(bundle, manifest)
    assert ttac.load(bundle).providers == [CPU] and "the engine has no CUDAExecutionProvider" in caplog.text
    caplog.clear()
    assert ttac.InferenceSession(bundle).get_providers() == [CPU] and caplog.text
    caplog.clear()
    assert ttac.load(bundle, providers=["cpu"]).providers == [CPU] and not caplog.text
    assert run("doctor", str(bundle)).code == 5
    manifest["target"]["providers"] = ["cudaa"]
    with pytest.raises(VerificationError, match=r"`target\.providers\[0\]` is 'cudaa'"):
        parse_manifest(manifest)


def test_providers_that_the_engine_has_come_first(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tiny.read(bundle)
    manifest["target"]["providers"] = ["tensorrt", "cuda"]
    monkeypatch.setattr(engine(), "get_available_providers", lambda: [CUDA, CPU])
    assert present([*parse_manifest(manifest).providers, "cpu"]) == [CUDA, CPU]


def test_bound_outputs_equal_those_of_a_plain_run(bundle: Path) -> None:
    """The way of providers with memory of their own, here with the memory of the CPU."""
    session, device = Session(bundle / "forward.onnx", EngineSettings()), EngineDevice()
    random = np.random.default_rng(0)
    feed = {}
    for name, port in session.inputs.items():
        shape = [size if isinstance(size, int) else 2 for size in port.shape]
        feed[name] = device.resident((4 * random.random(shape)).astype(port.dtype))
    names = list(session.outputs)
    bound = session._run_bound(feed, names, session._whole)
    for tensor, expected in zip(bound, session.run(feed, names), strict=True):
        np.testing.assert_array_equal(device.array(tensor), device.array(expected))


def test_doctor_shows_the_provider_of_each_graph(run: Run, bundle: Path) -> None:
    nodes = placements(bundle, ["cpu"])
    assert "forward" in nodes and all(provider == CPU for graph in nodes.values() for provider, _ in graph)
    assert not any("Memcpy" in operator for graph in nodes.values() for _, operator in graph)
    seen = run("doctor", str(bundle))
    assert seen.code == 0 and f"{sum(nodes['forward'].values())} nodes on {CPU}" in seen.out
    seen = run("doctor", str(bundle), "--providers", "cuda")
    assert seen.code == 5 and "has no `CUDAExecutionProvider`" in seen.err
    assert run("doctor", "--providers", "cpu").code == 2


def test_run_takes_providers(run: Run, bundle: Path) -> None:
    np.save("x.npy", np.ones((4, 3), np.float32))
    assert run("run", str(bundle), "x.npy", "--providers", "cpu").code == 0
    seen = run("run", str(bundle), "x.npy", "--providers", "cuda,cpu")
    assert seen.code == 5 and "has no `CUDAExecutionProvider`" in seen.err
