"""The terminal shows names from files of strangers; it must not obey the sequences in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.conftest import Run
from ttac.cli.terminal import visible

CLEAR = "\x1b[2J\x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode → text\nsecond\tline", "plain ünïcode → text\nsecond\tline"),
        (CLEAR, "\\x1b[2J\\x1b]0;owned\\x07"),
        ("a\rb\x08c\x7f", "a\\rb\\x08c\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
    ],
)
def test_control_characters_are_written_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_names_of_a_model_do_not_reach_the_terminal(run: Run, tmp_path: Path) -> None:
    x = onnx.helper.make_tensor_value_info(f"x{CLEAR}", 1, ["N", 2, 4, 4])
    y = onnx.helper.make_tensor_value_info(f"y{CLEAR}", 1, ["N", 3])
    names = [f"{name}{CLEAR}" for name in ("scale", "bias", "mean", "var")]
    values = [onnx.numpy_helper.from_array(np.ones(2, np.float32), name) for name in names]
    values.append(onnx.numpy_helper.from_array(np.ones((32, 3), np.float32), "w"))
    nodes = [
        onnx.helper.make_node("BatchNormalization", [x.name, *names], [f"n{CLEAR}"], name=f"bn{CLEAR}"),
        onnx.helper.make_node("Flatten", [f"n{CLEAR}"], [f"f{CLEAR}"], name=f"flat{CLEAR}"),
        onnx.helper.make_node("MatMul", [f"f{CLEAR}", "w"], [y.name], name=f"head{CLEAR}"),
    ]
    graph = onnx.helper.make_graph(nodes, f"graph{CLEAR}", [x], [y], values)
    path = tmp_path / "hostile.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    for command in (
        ["inspect", str(path)],
        ["compile", str(path), "--method", "tent", "-o", str(tmp_path / "out.ttac")],
        ["compile", str(path), "--method", "tent", "--train", "nothing", "-o", str(tmp_path / "other.ttac")],
        ["inspect", str(tmp_path / "out.ttac")],
    ):
        seen = run(*command)
        assert not [c for c in seen.out + seen.err if ord(c) < 32 and c not in "\n\t"], command
