"""`ttac inspect A B`: the differences of two graphs by room; and `ttac view` of the folder of `--dump`."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.parser
import pytest

from tests.conftest import Run
from ttac.cli.viewing import graph_file
from ttac.errors import UsageError
from ttac.reports.comparison import compare_graphs

HEAD = '<ir_version: 8, opset_import: ["" : 18]>\n'
BEFORE = "g (float[N,3] x) => (float[N,3] z) { y = Neg(x) w = Relu(y) z = Abs(w) }"
AFTER = "g (float[N,3] x) => (float[N,3] z) { y = Neg(x) m = Exp(y) s = Exp(m) v = Relu(s) z = Abs(v) }"


def write(path: Path, text: str, rooms: dict[str, tuple[str, str]]) -> Path:
    """Write a file whose nodes have the names of their outputs, and notes of room and layer, as rooms write them."""
    model = onnx.parser.parse_model(HEAD + text)
    for node in model.graph.node:
        node.name = {"v": "w"}.get(node.output[0], node.output[0])
        room, layer = rooms.get(node.name, ("", "body." + node.name))
        for key, value in (("ttac.room", room), ("ttac.layer", layer)):
            if value:
                node.metadata_props.add(key=key, value=value)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    write(tmp_path / "dump" / "01-normalise" / "model.onnx", BEFORE, {})
    write(
        tmp_path / "dump" / "02-adapt" / "model.onnx", AFTER, {"m": ("adapt", "layer1.bn"), "s": ("adapt", "layer1.bn")}
    )
    write(tmp_path / "dump" / "03-lower" / "forward.onnx", BEFORE, {})
    write(tmp_path / "dump" / "03-lower" / "update.onnx", BEFORE, {})
    return tmp_path / "dump"


def test_nodes_by_room_and_layer(dump: Path) -> None:
    report = compare_graphs(dump / "01-normalise" / "model.onnx", dump / "02-adapt")
    assert report["unchanged"] == 1 and report["before"].endswith("3 nodes") and report["after"].endswith("5 nodes")
    assert report["rooms"] == [
        {"room": "adapt", "removed": 0, "added": 2, "rewired": 0},
        {"room": "source", "removed": 0, "added": 0, "rewired": 2},
    ]
    added, *rewired = report["changes"]
    assert added == {
        "change": "added", "room": "adapt", "layer": "layer1.bn", "operators": "2 Exp", "nodes": ["m", "s"]
    }  # fmt: skip
    assert [(row["change"], row["layer"]) for row in rewired] == [("rewired", "body.w"), ("rewired", "body.z")]


def test_the_reverse_removes(dump: Path) -> None:
    report = compare_graphs(dump / "02-adapt", dump / "01-normalise")
    assert report["rooms"][0] == {"room": "adapt", "removed": 2, "added": 0, "rewired": 0}


def test_a_graph_and_itself(dump: Path) -> None:
    report = compare_graphs(dump / "02-adapt", dump / "02-adapt")
    assert report["unchanged"] == 5 and not report["changes"] and not report["rooms"]


def test_on_the_command_line(run: Run, dump: Path) -> None:
    seen = run("inspect", "dump/01-normalise/model.onnx", "dump/02-adapt/model.onnx")
    lines = [" ".join(line.split()) for line in seen.out.splitlines()]
    assert seen.code == 0 and "added adapt layer1.bn 2 Exp" in lines
    asked = json.loads(run("inspect", "dump/01-normalise/model.onnx", "dump/02-adapt/model.onnx", "--json").out)
    assert asked["changes"][0]["nodes"] == ["m", "s"]
    wrong = run("inspect", "dump/01-normalise/model.onnx", "dump/nothing")
    assert wrong.code == 2 and "`dump/nothing`" in wrong.err
    (dump / "04-empty").mkdir()
    wrong = run("inspect", "dump/01-normalise", "dump/04-empty")
    assert wrong.code == 2 and wrong.err.startswith("error: the folder holds no graph")


def test_view_finds_the_graphs_of_a_dump(dump: Path) -> None:
    assert graph_file(dump, "adapt") == dump / "02-adapt" / "model.onnx"
    assert graph_file(dump, "lower/update.onnx") == dump / "03-lower" / "update.onnx"
    assert graph_file(dump, None) == dump / "03-lower" / "update.onnx"
    assert graph_file(dump / "02-adapt", None) == dump / "02-adapt" / "model.onnx"
    assert graph_file(dump / "03-lower", None) == dump / "03-lower" / "forward.onnx"
    with pytest.raises(UsageError, match="the folder has no graph `adpt`") as caught:
        graph_file(dump, "adpt")
    assert "`adapt`" in caught.value.hint


def test_view_refuses_a_folder_without_graphs(dump: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the folder holds no graph"):
        graph_file(tmp_path, None)
    with pytest.raises(UsageError, match="only a bundle holds several graphs"):
        graph_file(dump / "02-adapt" / "model.onnx", "forward")
