"""The files that a compile writes or refuses to write, and the memory budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ttac
from tests.support.source_models import saved, source
from tests.support.tiny_bundles import read
from tests.support.whole_models import MODELS, compiled, everything, refused, samples
from ttac import finish
from ttac.errors import BudgetError, UsageError, VerificationError
from ttac.passes.graph.shorten import SHARED_BYTES, layer_in_name
from ttac.passes.verify.compare import Differences
from ttac.reports.comparison import nodes_of
from ttac.reports.measure import CLEAR
from ttac.sizes import parse_size


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(source(), tmp_path)


@pytest.fixture(autouse=True)
def no_temporary_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All temporary folders of a test go to one place, which must be empty afterwards."""
    place = tmp_path.parent / f"{tmp_path.name}-temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.chdir(tmp_path)
    yield
    assert list(place.iterdir()) == []


# --- memory -----------------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(not CLEAR.exists(), reason="memory is measured on Linux only")


@linux
@pytest.mark.slow
def test_a_budget_that_cannot_be_met(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODELS["densenet"].read_bytes())
    said = refused(BudgetError, path, batch=32, memory_budget="1MiB")
    first, *rows, empty, hint = said.splitlines()
    assert first.startswith("a step needs ") and first.endswith("the --memory-budget is 1.00 MiB")
    assert len(rows) == 5 and all(row.split(", ")[-1] == "int8" for row in rows) and not empty
    assert "lower `--batch` (now 32)" in hint and "`--train`" in hint
    least = hint.rsplit("`--memory-budget ")[-1].rstrip("`")
    bundle = ttac.compile(path, batch=32, memory_budget=least)
    assert {row["how"] for row in bundle.report["plan"]} >= {"int8", "bits"}
    assert 1 << 20 < bundle.manifest["memory"]["measured"]["peak"] <= parse_size(least)


@linux
def test_a_target_that_is_too_small(model: Path) -> None:
    from ttac import targets

    board = model.parent / "board.toml"
    board.write_text(targets.source("cpu").replace("[cpu]", "[board]").replace("4 GiB", "100 KiB"))
    said = refused(BudgetError, model, target=str(board))
    assert "memory of target `board` is 100 KiB" in said and "`--memory-budget" not in said


@pytest.mark.usefixtures("unmeasured")
def test_where_memory_cannot_be_measured_the_plan_counts(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODELS["resnet"].read_bytes())
    assert "the --memory-budget is 1.00 KiB" in refused(BudgetError, path, memory_budget="1KiB")
    assert ttac.compile(path, memory_budget="64MiB").manifest["memory"]["measured"] == {}


# --- files after a compile ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unmeasured")
def test_the_default_folder_is_in_the_working_directory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model.parent / "here").mkdir()
    monkeypatch.chdir(model.parent / "here")
    bundle = ttac.compile(model, target="jetson", method="bn")
    assert bundle.path == Path("model-bn-jetson.ttac") and list(Path().iterdir()) == [bundle.path]
    assert bundle.manifest["batch"] == {"planned": 8, "smallest": 1}
    assert bundle.manifest["method"]["settings"]["statistics"] == "batch"


@pytest.mark.usefixtures("unmeasured")
def test_an_output_that_is_something_else(model: Path) -> None:
    folder = model.parent / "photos"
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    said = refused(UsageError, model, output=folder)
    assert "not empty and is not a ttac bundle" in said and str(folder) in said
    assert "a file where the bundle should go" in refused(UsageError, model, output=model)
    assert "cannot write the bundle" in refused(UsageError, model, output=model / "below" / "b.ttac")


def test_an_output_is_looked_at_before_anything_is_done(model: Path) -> None:
    said: list[str] = []
    with pytest.raises(UsageError):
        ttac.compile(model, output=model, say=said.append)
    assert said == []


@pytest.mark.usefixtures("unmeasured")
def test_a_bundle_is_replaced_and_an_empty_folder_filled(model: Path) -> None:
    folder = model.parent / "new" / "b.ttac"
    folder.mkdir(parents=True)
    ttac.compile(model, output=folder, method="bn")
    ttac.compile(model, output=folder, method="source")
    assert read(folder)["method"]["name"] == "source" and not (folder / "backward.onnx").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["b.ttac"]


def test_a_failed_verification_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "verify", lambda *_: Differences(logits_off=0.0, gradients_halves=0.5))
    said = refused(VerificationError, model, output=model.parent / "a" / "b" / "c.ttac")
    assert "gradients halves differ by 5.00e-01, allowed 1e-05" in said


def test_an_interrupt_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(finish, "verify", interrupted)
    before = everything(model.parent)
    with pytest.raises(KeyboardInterrupt):
        ttac.compile(model, output=model.parent / "a" / "c.ttac")
    assert everything(model.parent) == before


def test_a_replaced_bundle_survives_a_refusal(model: Path) -> None:
    folder = compiled(model, model.parent, method="bn")
    refused(UsageError, model, output=folder, train="nothing")
    ttac.load(folder).step(samples((3, 8, 8), 2))


@pytest.mark.usefixtures("unmeasured")
def test_a_dry_run_writes_nothing(model: Path) -> None:
    before = everything(model.parent)
    bundle = ttac.compile(model, dry_run=True, output=model.parent / "deep" / "b.ttac")
    assert everything(model.parent) == before and bundle.path is None
    assert bundle.manifest["verified"]["gradients_halves"] <= 1e-5 and bundle.report["rooms"]
    folder = model.parent / "photos"
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    assert ttac.compile(model, dry_run=True, output=folder).path is None


@pytest.mark.usefixtures("unmeasured")
def test_a_graph_after_every_room(model: Path) -> None:
    said: list[str] = []
    dump = model.parent / "dump" / "here"
    ttac.compile(model, dump=dump, say=said.append)
    rooms = [path.name for path in sorted(dump.iterdir())]
    assert rooms == ["01-load", "02-normalise", "03-norms", "04-adapt", "05-autodiff", "06-lower"]
    graphs = {str(path.relative_to(dump)): onnx.load(path) for path in dump.rglob("*.onnx")}
    assert {"01-load/model.onnx", "05-autodiff/joint.onnx", "06-lower/backward.onnx"} < set(graphs)
    assert [node.op_type for node in graphs["01-load/model.onnx"].graph.node].count("Conv") == 1
    for name in ("01-load", "02-normalise", "03-norms"):
        onnx.checker.check_model(graphs[f"{name}/model.onnx"])
    assert [line.split()[0] for line in said if not line.startswith(" ")] == [
        "load", "normalise", "head", "norms", "adapt", "autodiff", "plan", "lower", "verify", "measure",
    ]  # fmt: skip
    assert "the dump folder is a file" in refused(UsageError, model, dump=model)


@pytest.mark.parametrize("name", ["mobilenet_v3", "hourglass", "transformer"])
def test_every_node_notes_its_layer_and_room(name: str, tmp_path: Path) -> None:
    """Nodes of the source have no room."""
    bundle = compiled(MODELS[name], tmp_path, batch=8)
    infer = {node.name for node in onnx.load(bundle / "infer.onnx").graph.node}
    graphs = [path for path in bundle.glob("*.onnx") if "." not in path.stem]  # no graphs of other forms
    assert {path.stem for path in graphs} == {"backward", "forward", "infer", "update"}
    for path in graphs:
        for node in onnx.load(path).graph.node:
            told = {entry.key: entry.value for entry in node.metadata_props}
            assert told.get("ttac.layer"), (path.name, node.name)
            assert node.name in infer or told.get("ttac.room"), (path.name, node.name)


@pytest.mark.usefixtures("unmeasured")
def test_an_8_bit_graph_says_nothing_twice(tmp_path: Path) -> None:
    """Neither notes that follow from a node's name, nor shapes within a layer, nor constants of a single number."""
    x = np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32)
    bundle = compiled(MODELS["mobilenet_v3"], tmp_path, method="leantta", quantize="int8", calibration=x, batch=1)
    inline: list[set[tuple[str, bytes]]] = []
    for path in sorted(path for path in bundle.glob("*.onnx") if not path.stem.startswith("probe.")):
        graph = onnx.load(path, load_external_data=False).graph
        made = {output: node for node in graph.node for output in node.output}
        of_bytes = "kernels-bytes" in path.stem  # its norms read the bytes of the layer before them
        assert 0 < len(graph.value_info) < len(made) / 3
        assert of_bytes or all(made[value.name].op_type != "QuantizeLinear" for value in graph.value_info)
        held = [tensor for tensor in graph.initializer if not tensor.external_data and tensor.data_type != 7]
        inline.append({(tensor.name, tensor.raw_data) for tensor in held if len(tensor.raw_data) > SHARED_BYTES})
        arrays = [onnx.numpy_helper.to_array(tensor, str(bundle)) for tensor in graph.initializer]
        assert not any(a.ndim == 1 and a.nbytes > SHARED_BYTES and (a == a[0]).all() for a in arrays)
        scalars = [(tensor.data_type, tensor.raw_data) for tensor in graph.initializer if not tensor.dims]
        assert len(set(scalars)) == len(scalars)
        placed = list(nodes_of(path))
        made_here = [node for node in placed if node.room != "source" and node.operator != "ConstantOfShape"]
        assert made_here and all(node.layer != "-" for node in made_here)
        rooms = {node.room for node in placed if node.operator in ("QuantizeLinear", "DequantizeLinear")}
        assert rooms == {"quantize"}
        assert {node.room for node in placed if node.operator in ("Exp", "ReduceSumSquare")} <= {"adapt"}
    assert not any(first & second for first, second in combinations(inline, 2))


@pytest.mark.parametrize(
    ("name", "op_type", "told"),
    [
        ("layer1.0.kernel", "DequantizeLinear", ("quantize", "layer1.0")),
        ("layer1.0.int8.2", "QuantizeLinear", ("quantize", "layer1.0")),
        ("layer1.0.bias.rounded", "DequantizeLinear", ("quantize", "layer1.0")),
        ("fc.bias.scale", "Mul", ("quantize", "fc")),
        ("layer1.bn.mul.3", "Mul", ("", "layer1.bn")),
        ("layer1.kernel", "Conv", ("", "")),
        ("/layer1/Mul", "Mul", ("", "")),
    ],
)
def test_room_and_layer_in_the_name_of_a_node(name: str, op_type: str, told: tuple[str, str]) -> None:
    assert layer_in_name(name, op_type) == told


@pytest.mark.usefixtures("unmeasured")
def test_the_manifest_describes_the_compile(model: Path) -> None:
    bundle = ttac.compile(model, batch=3, settings={"lr": "0.5", "optimizer": "sgd"})
    manifest = bundle.manifest
    assert manifest["source"]["file"] == "model.onnx" and len(manifest["source"]["sha256"]) == 64
    assert manifest["method"]["settings"]["lr"] == 0.5 and manifest["method"]["settings"]["momentum"] == 0.9
    assert manifest["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 3, 8, 8]}]
    assert manifest["outputs"] == [{"name": "y", "dtype": "float32", "shape": ["N", 5]}]
    assert manifest["batch"] == {"planned": 3, "smallest": 1}
    assert json.loads((bundle.path / "report.json").read_text())["rooms"][0].startswith("load")  # type: ignore[operator]


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("batch", [1, 5])
def test_any_number_of_samples_up_to_the_planned(batch: int, tmp_path: Path) -> None:
    adapter = ttac.load(compiled(MODELS["shufflenet"], tmp_path, batch=batch))
    for size in range(1, batch + 1):
        assert adapter.step(samples(adapter.input_shape, size)).shape == (size, 7)
    with pytest.raises(UsageError, match=f"planned for {batch}"):
        adapter.step(samples(adapter.input_shape, batch + 1))
