"""`ttac bench`: the order of the timed turns, the report, and refused usage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.conftest import Run
from tests.support.tiny_bundles import GAIN, ema, read, reseal
from ttac import demo
from ttac.errors import RuntimeMissingError, UsageError
from ttac.evaluation import bench as bench_module
from ttac.evaluation import timing
from ttac.evaluation.bench import Bench
from ttac.evaluation.bench_figures import Benchmark, Figures
from ttac.evaluation.bench_report import columns, markdown, rows
from ttac.evaluation.source_inference import inference, measure_inference
from ttac.evaluation.subjects import method_specs, subjects_of
from ttac.evaluation.timing import Times, paired
from ttac.reports.measure import CLEAR, measured_by

LINUX = pytest.mark.skipif(not CLEAR.exists(), reason="memory is measured on Linux")
PEAK = {"peak": 4 * 2**20, "loaded": 2**20}


def figures(**changes: Any) -> Figures:
    made = dict(
        model="net",
        method="tent",
        batch=8,
        inference_ms=2.0,
        step_ms=5.0,
        ratio=2.5,
        spread=(2.4, 2.75),
        memory=PEAK,
        inference={"peak": 2**20, "loaded": 2**20},
        residuals=3 * 2**20,
        cache=None,
        compile_seconds=1.5,
    )
    return Figures(**{**made, **changes})


ABOUT = {"date": "2026-01-01", "machine": "a machine", "packages": "ttac 1", "threads": "2"}


# --- timing ---------------------------------------------------------------------------------------------------------


def test_inference_of_a_model_beside_the_source(tmp_path: Path) -> None:
    """The float model of an 8-bit bundle: its inference in units of the source's, here the same file."""
    bundle = ema(tmp_path / "tiny.ttac")
    model = tmp_path / "float.onnx"
    graph = onnx.load(bundle / "infer.onnx")
    onnx.save(graph, model)
    found = Bench(batch=[4], pairs=7, threads=1, beside=model).run([bundle])
    (each,) = found.figures
    peer = each.peers["float.onnx"]
    assert 0.2 < peer["ratio"] < 5 and peer["milliseconds"] > 0
    assert columns(found)[-1] == "float.onnx: / inference, peak"
    assert (peer["peak"] is not None) == CLEAR.exists()


def test_an_8_bit_step_is_compared_with_the_float_model(tmp_path: Path) -> None:
    """Of a model that `bench` compiles with `--quantize int8`; a bundle alone has no float model but `--beside`."""
    model, options = demo.file("fashion_resnet_bn_unfolded.onnx"), {"quantize": "int8"}
    subjects, recipes = subjects_of([model], method_specs(["tent"], {}), [4], options, tmp_path)
    (recipe,) = recipes.values()
    group = bench_module.Group(Bench(options=options), subjects, recipes, {}, 1)
    assert group.source == model and recipe.arguments["quantize"] == "int8"
    bundle = ema(tmp_path / "tiny.ttac")
    subjects, recipes = subjects_of([bundle], [], [], options, tmp_path)
    assert bench_module.Group(Bench(), subjects, recipes, {}, 1).source == bundle / "infer.onnx"


def test_both_run_in_turn_and_each_comes_first_every_other_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SHORTEST", 0.0)
    ran: list[str] = []
    times = paired(lambda: ran.append("inference"), lambda: ran.append("step"), pairs=7)
    timed = ran[2 * timing.WARM_UP :]
    assert [timed[i : i + 2] for i in range(0, 14, 2)] == [["step", "inference"], ["inference", "step"]] * 3 + [
        ["step", "inference"]
    ]
    assert len(times.inference) == len(times.step) == 7


def test_short_steps_are_repeated_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def work(seconds: float) -> Callable[[], None]:
        def action() -> None:
            now[0] += seconds

        return action

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    times = paired(work(0.001), work(0.004), pairs=7)
    np.testing.assert_allclose(times.ratios, 4)
    assert now[0] > 7 * 2 * timing.SHORTEST / 2


def test_the_ratio_is_that_of_each_turn() -> None:
    np.testing.assert_allclose(Times(np.array([1.0, 2, 4]), np.array([2.0, 4, 4])).ratios, [2, 2, 1])


# --- reports --------------------------------------------------------------------------------------------------------


def test_rows_of_text() -> None:
    found = Benchmark([figures(), figures(memory=None, inference=None, residuals=None)], ABOUT)
    assert rows(found)[0][3:] == ["2.0", "5.0", "2.50 (2.40-2.75)", "4.00 MiB", "1.00 MiB", "1.00 MiB", "3.00 MiB"]
    assert rows(found)[1][6:] == ["-", "-", "-", "-"]
    assert len(columns(found)) == len(rows(found)[0])


def test_columns_of_published_cache_and_peers_are_optional() -> None:
    eager = {"milliseconds": 9.0, "ratio": 4.5, "spread": [4.4, 4.6], "peak": 8 * 2**20, "loaded": 2**20}
    compiled = {**eager, "ratio": 3.5, "spread": [3.4, 3.6], "peak": None}
    peers = {"eager": eager, "torch.compile": compiled}
    found = Benchmark([figures(cache=5 * 2**20, peers=peers), figures(method="bn")], ABOUT, "PyTorch")
    names = ["published cache", "eager: / inference, peak", "torch.compile: / inference, peak"]
    assert columns(found)[-3:] == names
    assert rows(found)[0][-3:] == ["5.00 MiB", "4.50 (4.40-4.60), 8.00 MiB", "3.50 (3.40-3.60), -"]
    assert rows(found)[1][-3:] == ["-", "-", "-"]
    assert (found.figures[0].best("ratio"), found.figures[0].best("peak")) == (3.5, 8 * 2**20)
    assert found.figures[1].best("ratio") is None
    lines = markdown(found).splitlines()
    assert len(lines) == 4 and all(line.count("|") == lines[0].count("|") for line in lines)


def test_the_page() -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    from ttac.evaluation.bench_report import page

    missing = [("net", "bn", UsageError("no <norm>"))]
    text = page(Benchmark([figures(), figures(method="bn", memory=None)], ABOUT, missing=missing))
    assert text.count("<svg") == 4 and "no &lt;norm&gt;" in text and "2.50 (2.40-2.75)" in text


def test_json() -> None:
    told = json.loads(json.dumps(Benchmark([figures()], ABOUT).as_json(), allow_nan=False))
    assert told["rows"][0]["ratio"] == 2.5 and told["about"] == ABOUT and told["missing"] == []


# --- measuring ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return ema(tmp_path / "tiny.ttac")


def test_inference_runs_the_source_model(bundle: Path) -> None:
    x = np.ones((2, 3), np.float32)
    (found,) = inference(bundle / "infer.onnx", 1)(x)  # type: ignore[misc]
    np.testing.assert_allclose(found, np.maximum(x @ GAIN, 0), rtol=1e-6)


@LINUX
@pytest.mark.slow
def test_memory_of_the_inference_of_the_source(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((4, 3), np.float32))
    found = measure_inference(bundle / "infer.onnx", tmp_path / "x.npz", 1)
    assert found is not None and 0 <= found["peak"] < 2**25 and 0 < found["loaded"] < 2**28


def test_a_failed_process_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ttac.reports.measure.CLEAR", tmp_path)
    with pytest.raises(RuntimeMissingError) as caught:
        measured_by("no_such_module")
    assert "no_such_module" in caught.value.where
    monkeypatch.setattr("ttac.reports.measure.CLEAR", tmp_path / "none")
    assert measured_by("never") is None


@pytest.mark.slow
def test_a_bundle_is_measured_with_the_samples_given(bundle: Path, run: Run) -> None:
    np.save("x.npy", np.ones((9, 3), np.float32))
    seen = run("bench", str(bundle), "--data", "x.npy", "--threads", "1", "--json", "--markdown", "x.md")
    report = json.loads(seen.out)
    (row,) = report["rows"]
    assert (row["model"], row["method"], row["batch"], row["compile_seconds"]) == ("tiny", "tiny", 4, None)
    assert row["ratio"] > 0 and row["spread"][0] <= row["ratio"] <= row["spread"][1] and row["peers"] == {}
    assert Path("x.md").read_text().startswith("| model | method |") and report["about"]["threads"] == "1"
    assert not CLEAR.exists() or (row["memory"]["loaded"] > 0 and row["inference"]["loaded"] > 0)


@pytest.mark.slow
def test_a_model_is_compiled_with_every_method(run: Run) -> None:
    model = str(demo.file("fashion_resnet_gn.onnx"))
    seen = run("bench", model, "--methods", "source,bn", "--batch", "2", "--threads", "1", "--json")
    report = json.loads(seen.out)
    assert seen.code == 0 and [(row["method"], row["batch"]) for row in report["rows"]] == [("source", 2)]
    assert [each["method"] for each in report["missing"]] == ["bn"] and report["rows"][0]["compile_seconds"] > 0


class Peer:
    """A peer of one variant, whose step does nothing."""

    name = "Peer"

    def steps(
        self, model: Path, manifest: Mapping[str, Any], threads: int
    ) -> Mapping[str, Callable[[np.ndarray], object]]:
        return {"idle": lambda x: None}

    def memory(self, model: Path, manifest: Mapping[str, Any], threads: int, variant: str) -> Mapping[str, Any] | None:
        return {"peak": 7, "loaded": 8} if variant == "idle" else None


@pytest.mark.slow
def test_peers_are_timed_too() -> None:
    found = Bench(methods=["source"], batch=[1], threads=1, peers=Peer()).run([demo.file("fashion_resnet_gn.onnx")])
    (row,) = found.figures
    assert row.peers["idle"]["peak"] == 7 and row.peers["idle"]["ratio"] < 0.5 and found.peers == "Peer"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "the argument `MODEL_OR_BUNDLE...` is missing"),
        (["none.onnx"], "there is no such model or bundle"),
        (["tiny.ttac", "--pairs", "3"], "3 pairs are too few for a median"),
        (["tiny.ttac", "--batch", "8"], "planned for 4 samples a step"),
        (["tiny.ttac", "--methods", "tnet"], "did you mean `tent`?"),
        (["tiny.ttac", "--against", "pytorc"], "did you mean `pytorch`?"),
        (["tiny.ttac", "--data", "few.npy"], "there are 2 samples, a step takes 4"),
        (["tiny.ttac", "--markdown", "no/x.md"], "the folder does not exist"),
    ],
)
def test_wrong_usage_is_refused(arguments: list[str], error: str, bundle: Path, run: Run) -> None:
    np.save("few.npy", np.ones((2, 3), np.float32))
    seen = run("bench", *arguments)
    assert seen.code == 2 and error in seen.err and not seen.out


def test_pytorch_s_side_is_in_the_checkout_only(
    bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ttac.cli.benching.CHECKOUT", tmp_path)
    seen = run("bench", str(bundle), "--against", "pytorch")
    assert seen.code == 5 and "not part of the installed package" in seen.err and "from a checkout" in seen.err


@pytest.fixture
def pytorch() -> Iterator[Any]:
    pytest.importorskip("torch")
    from benchmarks.peers import PyTorch

    yield PyTorch()


@pytest.mark.slow
def test_names_that_are_no_network(pytorch: Any) -> None:
    with pytest.raises(UsageError) as caught, pytorch.exported([Path("resnet81")]):
        pass
    assert caught.value.hint == "did you mean `resnet18`?"


def test_a_bundle_for_another_batch_has_no_memory(bundle: Path) -> None:
    manifest = read(bundle)
    reseal(bundle, {**manifest, "batch": {"planned": 8, "smallest": 1}})
    from ttac.evaluation.subjects import subjects_of

    ((small,), _), ((whole,), _) = (subjects_of([bundle], [], [batch], {}, bundle) for batch in (4, 8))
    assert bench_module._memory(small, 1, bundle / "none.npy") is None and small.batch == 4 and whole.batch == 8


def test_the_peak_is_at_least_the_peak_of_the_compile(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers may not make a method learn; the compile takes every branch."""
    from ttac.evaluation.subjects import subjects_of

    manifest = read(bundle)
    reseal(bundle, {**manifest, "memory": {"measured": {"peak": 500}}})
    ((subject,), _) = subjects_of([bundle], [], [], {}, bundle)
    for found, told in ((400, 500), (600, 600)):
        monkeypatch.setattr(bench_module, "measure", lambda *args, peak=found, **more: {"peak": peak, "loaded": 1})
        assert bench_module._memory(subject, 1, bundle / "x.npy") == {"peak": told, "loaded": 1}
    monkeypatch.setattr(bench_module, "measure", lambda *args, **more: None)
    assert bench_module._memory(subject, 1, bundle / "x.npy") is None
