"""The options of a compile: one declaration, one resolver for Python, the command line and TOML files."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import ttac
from tests.support.real_files import POOLED, written
from ttac.cli import main
from ttac.cli.compiling import compile_command
from ttac.errors import UsageError
from ttac.options import RULES, CompileOptions, spelling

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOML = """
method = "tent"
batch = 4
memory_budget = "64MiB"
shape = [3, 8, 8]
settings = {lr = 0.01}
"""


def resolved(**choices: Any) -> CompileOptions:
    return CompileOptions.from_mapping("net.onnx", choices)


def test_python_has_every_option_with_its_default() -> None:
    parameters = inspect.signature(ttac.compile).parameters
    assert list(parameters) == ["model", "example", *sorted(RULES, key=list(parameters).index), "say"]
    for name, rule in RULES.items():
        default = parameters[name].default
        assert (default or None) == (rule.default or None), name


def test_the_command_line_has_every_option_with_its_default() -> None:
    declared = {option.name: option for option in compile_command.params if isinstance(option, click.Option)}
    assert set(RULES) <= set(declared)
    for name, rule in RULES.items():
        assert spelling(name) in declared[name].opts
        assert not rule.default or declared[name].default == rule.default, name


def test_a_toml_file_gives_the_same_options(tmp_path: Path) -> None:
    choices: Mapping[str, Any] = tomllib.loads(TOML)
    assert CompileOptions.from_mapping("net.onnx", choices) == resolved(
        batch="4", memory_budget=64 << 20, shape="3x8x8", settings=["lr=0.01"]
    )


def test_the_target_and_the_file_give_defaults() -> None:
    options = resolved(method="bn", target="raspberry-pi-4", batch=None)
    assert options.batch == options.target.batch
    assert options.output == Path("net-bn-raspberry-pi-4.ttac")


def test_arrays_stay_calibration_samples() -> None:
    samples = np.zeros((2, 3), np.float32)
    assert resolved(calibration=samples).calibration is samples
    assert resolved(calibration="samples.npz").calibration == Path("samples.npz")


@pytest.mark.parametrize(
    ("choices", "message", "where"),
    [
        ({"metod": "bn"}, "a compile has no option `metod`", ""),
        ({"method": 3}, "`3` is no name", "`--method`"),
        ({"batch": True}, "`True` does not fit", "`--batch`"),
        ({"batch": 1.5}, "`1.5` does not fit", "`--batch`"),
        ({"memory_budget": 0}, "`0` is less than one byte", "`--memory-budget`"),
        ({"shape": [3, -1]}, "`[3, -1]` is not a shape", "`--shape`"),
        ({"dump": 3}, "`3` is no path", "`--dump`"),
        ({"calibration": [1.0]}, "`[1.0]` is no path", "`--calibration`"),
        ({"dry_run": "yes"}, "`yes` is neither true nor false", "`--dry-run`"),
        ({"head": "dence"}, "`dence` is no choice", "`--head`"),
        ({"settings": "lr"}, "a setting is written `name=value`", "`--set lr`"),
    ],
)
def test_options_of_a_wrong_name_or_type(choices: dict[str, Any], message: str, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolved(**choices)
    assert caught.value.problem == message and caught.value.where == where and caught.value.hint


@pytest.mark.parametrize(
    ("axis", "said"), [("2", "output `y` [N,5], `--axis 2`"), ("9", "[N,5]"), ("-1", "at least 1")]
)
def test_an_axis_of_classes_that_does_not_exist(
    axis: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "(float[N,3,8,8] x) => (float[N,5] y)", f"{POOLED} y = MatMul (f, wf)")
    assert main(["compile", str(path), "--method", "tent", "--axis", axis, "-o", str(tmp_path / "b.ttac")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "b.ttac").exists()
