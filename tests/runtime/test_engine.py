"""The engine behind its seam, the replacement session, and the modules that both import."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import ttac
from tests.support import tiny_bundles as tiny
from tests.support.tiny_bundles import batch
from ttac.errors import RuntimeMissingError, UsageError
from ttac.runtime import EngineSettings, engine, engine_import, hash_check
from ttac.runtime.adapter import Adapter
from ttac.runtime.engine import open_session
from ttac.runtime.engine_import import problem_with
from ttac.runtime.state_files import write_state


def test_the_session_looks_like_the_engines_own(tmp_path: Path) -> None:
    folder = tiny.ema(tmp_path / "b")
    ours, theirs = ttac.InferenceSession(folder), open_session(folder / "infer.onnx")
    for mine, real in ((ours.get_inputs(), theirs.get_inputs()), (ours.get_outputs(), theirs.get_outputs())):
        assert [(v.name, v.shape, v.type) for v in mine] == [(v.name, v.shape, v.type) for v in real]
    assert ours.get_providers() == theirs.get_providers()


def test_the_session_equals_the_source_on_a_neutral_state(tmp_path: Path) -> None:
    folder = tiny.ema(tmp_path / "b")
    session, source = ttac.InferenceSession(str(folder)), open_session(folder / "infer.onnx")
    neutral = {"mean": np.zeros(3, np.float32), "count": np.array(0)}
    write_state(tmp_path / "neutral", neutral, session.adapter._manifest.identity)
    session.adapter.restore(tmp_path / "neutral")
    feed = {"x": batch(3)}
    np.testing.assert_allclose(session.run(None, feed)[0], source.run(None, feed)[0], rtol=1e-6, atol=1e-7)


def test_the_session_adapts_by_default(tmp_path: Path) -> None:
    folder = tiny.ema(tmp_path / "b")
    session = ttac.InferenceSession(folder, providers=["CUDAExecutionProvider", ("CPUExecutionProvider", {})])
    session.run(["logits"], {"x": batch()})
    assert session.adapter.stats["steps"] == 1
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    still = ttac.InferenceSession(folder, adapt=False, sess_options=options)
    first, second = (still.run(["logits"], {"x": batch()}, None)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert still.adapter.stats["steps"] == 0 and still.run([], {"x": batch()})[0].shape == (4, 2)


def test_the_session_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    folder = tiny.ema(tmp_path / "b")
    session = ttac.InferenceSession(folder)
    with pytest.raises(UsageError, match="no output `probabilities`"):
        session.run(["probabilities"], {"x": batch()})
    with pytest.raises(UsageError, match="takes the inputs `x`; got `image`"):
        session.run(None, {"image": batch()})
    assert session.adapter.stats["steps"] == 0
    with pytest.raises(RuntimeMissingError, match="has no `CUDAExecutionProvider`"):
        ttac.InferenceSession(folder, providers=["CUDAExecutionProvider"])


@pytest.fixture
def fresh_engine() -> Iterator[None]:
    """The engine is looked for again, before and after the test."""
    engine_import.engine.cache_clear()
    yield
    engine_import.engine.cache_clear()


def test_a_missing_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_engine: None) -> None:
    folder = tiny.ema(tmp_path / "b")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissingError, match="no working onnxruntime") as caught:
        ttac.load(folder)
    assert caught.value.exit_code == 5 and "pip install onnxruntime" in caught.value.hint


def test_an_engine_for_numpy_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_engine: None) -> None:
    """onnxruntime 1.18 prints a page beside numpy 2, and raises an error without text."""

    def fail() -> Any:
        raise ImportError

    monkeypatch.setattr(engine_import, "_import_without_training", fail)
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(RuntimeMissingError, match="no working onnxruntime: ImportError") as caught:
        ttac.load(tiny.ema(tmp_path / "b"))
    assert "`pip install 'numpy<2'`" in caught.value.hint


def test_options_for_each_provider(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 providers have 2 entries of options"):
        ttac.InferenceSession(tiny.ema(tmp_path / "b"), providers=["cpu"], provider_options=[{}, {}])


def test_an_engine_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_engine: None) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.16.3")
    with pytest.raises(RuntimeMissingError, match=r"onnxruntime 1\.16\.3 cannot be used: it is older than 1\.18"):
        ttac.load(tiny.ema(tmp_path / "b"))


@pytest.mark.parametrize(
    ("version", "machine", "problem"),
    [
        ("1.17.3", "x86_64", "older"),
        ("1.18.0", "x86_64", ""),
        ("1.19.2+cpu", "x86_64", ""),
        ("1.21.0", "aarch64", "illegal"),
        ("1.21.0", "x86_64", ""),
        ("2.0.0", "x86_64", ""),
    ],
)
def test_versions_of_the_engine(version: str, machine: str, problem: str) -> None:
    found = problem_with(version, machine)
    assert problem in found and bool(problem) == bool(found)


def test_a_graph_the_engine_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tiny.ema(tmp_path / "b")
    model = tiny.parse(tiny.EMA)
    model.opset_import[0].version = 999
    (folder / "forward.onnx").write_bytes(model.SerializeToString())
    tiny.reseal(folder)
    with pytest.raises(RuntimeMissingError, match="does not load the graph") as caught:
        ttac.load(folder)
    assert "forward.onnx" in caught.value.where and "onnxruntime 1." in caught.value.problem
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "settings",
    [
        EngineSettings(),
        EngineSettings(threads=2, spinning=True, shared_arena=False, memory_pattern=True, file_order=False),
        EngineSettings(optimization="all", prepacking=False),
    ],
)
def test_settings_change_no_numbers(tmp_path: Path, settings: EngineSettings) -> None:
    adapter = ttac.load(tiny.trained(tmp_path / "b"), settings=settings)
    scale = np.ones(2, np.float32)
    for seed in range(3):
        expected, scale = tiny.trained_expected(batch(seed=seed), scale)
        np.testing.assert_allclose(adapter.step(batch(seed=seed)), expected, rtol=1e-5, atol=1e-7)


def test_a_graph_may_name_its_own_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: dict[str, str] = {}
    options_of = engine._options

    def spy(settings: EngineSettings) -> Any:
        levels[settings.optimization] = settings.optimization
        return options_of(settings)

    monkeypatch.setattr(engine, "_options", spy)
    folder = tiny.trained(tmp_path / "b")
    manifest = tiny.read(folder)
    manifest["graphs"]["forward"]["optimization"] = "extended"
    tiny.reseal(folder, manifest)
    ttac.load(folder)
    assert set(levels) == {"all", "extended"}


@pytest.mark.parametrize(("bundle", "shared"), [(tiny.ema, False), (tiny.trained, True)])
def test_only_graphs_of_one_bundle_share_an_arena(
    bundle: Callable[[Path], Path], shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[bool] = set()
    options_of = engine._options

    def spy(settings: EngineSettings) -> Any:
        seen.add(settings.shared_arena)
        return options_of(settings)

    monkeypatch.setattr(engine, "_options", spy)
    ttac.load(bundle(tmp_path / "b"))
    assert seen == {shared}


@pytest.mark.parametrize("threads", [-1, 1.5, "two"])
def test_threads_are_a_count(tmp_path: Path, threads: Any) -> None:
    with pytest.raises(UsageError, match="not a count"):
        ttac.load(tiny.ema(tmp_path / "b"), threads=threads)


def test_weights_are_mapped_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_check, "PRIVATE_BYTES", 0)
    adapter = ttac.load(tiny.trained(tmp_path / "b"))
    assert list(adapter._executor.form.weights) == ["gain"], "only weights that a graph takes"
    gain = adapter._executor.form.weights["gain"]
    np.testing.assert_array_equal(gain.numpy(), tiny.GAIN)
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        spans = [
            line.split()[0].split("-") for line in mapped.read_text().splitlines() if "weights.safetensors" in line
        ]
        assert any(int(low, 16) <= gain.data_ptr() < int(high, 16) for low, high in spans)


HEAVY = "onnx onnx_ir onnxruntime.training networkx onnxsim torch click rich sympy PIL"


def loaded_after(code: str, **environment: str) -> set[str]:
    """Which heavy modules a fresh process has loaded after `code`."""
    check = f"import sys\n{code}\nprint(*(name for name in {HEAVY!r}.split() if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", check], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_device_half_is_light() -> None:
    code = (
        "import ttac.runtime, ttac.runtime.adapter, ttac.runtime.session, ttac\nassert 'onnxruntime' not in sys.modules"
    )
    assert loaded_after(code) == set()


def test_running_a_bundle_is_light(tmp_path: Path) -> None:
    folder = tiny.ema(tmp_path / "b")
    code = f"import ttac, numpy\nttac.load({str(folder)!r}).step(numpy.zeros((2, 3), numpy.float32))"
    assert loaded_after(code) == set()


@pytest.mark.skipif("TTAC_STOCK_ORT" not in os.environ, reason="TTAC_STOCK_ORT names no folder with a stock engine")
def test_a_stock_engine_runs_the_same_bundle(tmp_path: Path) -> None:
    folder, stock = tiny.trained(tmp_path / "b"), os.environ["TTAC_STOCK_ORT"]
    np.save(tmp_path / "x.npy", batch())
    code = f"""import ttac, numpy, onnxruntime
assert onnxruntime.__file__.startswith({stock!r})
x, adapter = numpy.load({str(tmp_path / "x.npy")!r}), ttac.load({str(folder)!r})
for _ in range(3): logits = adapter.step(x)
numpy.save({str(tmp_path / "y.npy")!r}, logits)"""
    assert loaded_after(code, PYTHONPATH=stock) == set()
    scale = np.ones(2, np.float32)
    for _ in range(3):
        expected, scale = tiny.trained_expected(batch(), scale)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5, atol=1e-7)


def test_the_door_is_lazy_and_complete() -> None:
    assert set(ttac.__all__) <= set(dir(ttac))
    assert ttac.Adapter is Adapter and callable(ttac.compile) and ttac.__version__
    assert "tent" in ttac.methods.names() and "cpu" in ttac.targets.names() and "tent" in ttac.methods.names()
    with pytest.raises(AttributeError, match="no attribute `comple`"):
        ttac.comple  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute `lod`"):
        ttac.runtime.lod  # noqa: B018
