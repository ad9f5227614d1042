"""The target tables and their schema: the refusals, and their words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Run
from tests.support.source_models import saved, source
from tests.support.tiny_bundles import read
from ttac import targets
from ttac.errors import UsageError
from ttac.reports import doctor

TABLE = """
[my-board]
title = "my board"
engine = "onnxruntime"
opset = 18
ir_version = 8
memory = "512 MiB"
"""


def load(folder: Path, text: str) -> targets.Target:
    file = folder / "my.toml"
    file.write_text(text, encoding="utf-8")
    return targets.find(str(file))


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(folder, text)
    return str(caught.value).replace(str(folder), "DIR")


@pytest.mark.parametrize("name", targets.names())
def test_built_in_targets_fit_every_engine_they_admit(name: str) -> None:
    target = targets.find(name)
    admitted = [v for v in doctor.known_versions() if targets.admits(target.engine_versions, v)]
    assert admitted
    for version in admitted:
        limits = doctor.limits(version)
        assert target.opset <= limits.opset and target.ir_version <= limits.ir_version
    assert target.title and target.memory > 2**30 and target.batch >= 1


def test_the_five_targets() -> None:
    assert targets.names() == ["cpu", "jetson", "jetson-orin-nano", "raspberry-pi-4", "raspberry-pi-5"]
    assert "illegal instruction" in targets.find("raspberry-pi-4").denied["1.21.0"]


def test_a_user_table(tmp_path: Path) -> None:
    target = load(tmp_path, TABLE + 'kernels = ["ConvGrad"]\ndenied = { "1.20.0" = "slow" }\nthreads = 4\n')
    assert (target.name, target.memory, target.batch, target.threads) == ("my-board", 512 * 2**20, 8, 4)
    assert target.kernels == ("ConvGrad",) and target.denied == {"1.20.0": "slow"}


@pytest.mark.usefixtures("unmeasured")
def test_a_target_may_name_providers(run: Run, tmp_path: Path) -> None:
    """The manifest and the talk of the compile have them; a target without providers runs on the CPU."""
    (tmp_path / "board.toml").write_text(TABLE + 'providers = ["cuda", "cpu"]\n')
    model = saved(source(), tmp_path)
    seen = run("compile", str(model), "--method", "source", "--target", "board.toml", "-o", "b.ttac")
    assert seen.code == 0 and "the bundle runs on cuda, then the CPU of: " in seen.err
    assert read(tmp_path / "b.ttac")["target"]["providers"] == ["cuda", "cpu"]
    assert {targets.find(name).runs_on for name in targets.names()} == {"the CPU"}


@pytest.mark.parametrize("name", targets.names())
def test_the_printed_table_reads_back(name: str, tmp_path: Path) -> None:
    assert load(tmp_path, targets.source(name)) == targets.find(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            TABLE + "memmory = 3",
            "a target has no key `memmory`\n  at `DIR/my.toml`, table `[my-board]`\n\nhint: did you mean `memory`?",
        ),
        (
            TABLE.replace("opset = 18\n", ""),
            "the target lacks `opset`\n  at `DIR/my.toml`, table `[my-board]`\n\n"
            "hint: `opset` is a whole number, at least 18",
        ),
        (
            TABLE.replace('"512 MiB"', '"lots"'),
            "`memory = 'lots'` does not fit\n  at `DIR/my.toml`, table `[my-board]`\n\n"
            "hint: `memory` is a size like `2 GiB`, or a number of bytes",
        ),
        (
            TABLE.replace('"onnxruntime"', '"tensorrt"'),
            "`engine = 'tensorrt'` does not fit\n  at `DIR/my.toml`, table `[my-board]`\n\n"
            "hint: `engine` is one of `onnxruntime`",
        ),
        (
            TABLE + TABLE.replace("my-board", "other"),
            "a target file holds exactly one table, named after the target\n  at `DIR/my.toml`\n\n"
            "hint: begin it with `[my-board]`; `ttac targets raspberry-pi-5 --toml` prints one to start from",
        ),
    ],
)
def test_what_a_table_must_not_say(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text) == message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("opset", "17"),
        ("opset", "true"),
        ("batch", "0"),
        ("batch", "2.5"),
        ("threads", "-1"),
        ("kernels", '"ConvGrad"'),
        ("kernels", "[1]"),
        ("engine_versions", '"newest"'),
        ("denied", '["1.21.0"]'),
        ("memory", "0"),
        ("title", "3"),
        ("providers", '["cudaa"]'),
        ("providers", '"cuda"'),
    ],
)
def test_wrong_types_and_bounds(tmp_path: Path, key: str, value: str) -> None:
    lines = [line for line in TABLE.splitlines() if not line.startswith(f"{key} =")]
    assert f"`{key} = " in refusal(tmp_path, "\n".join([*lines, f"{key} = {value}"]))


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    assert refusal(tmp_path, "opset = ").startswith("the target file is not TOML: ")
    with pytest.raises(UsageError, match="cannot read the target file: No such file"):
        targets.find(str(tmp_path / "none.toml"))


def test_engine_limits() -> None:
    assert (doctor.limits("1.19.2").opset, doctor.limits("1.19.2").ir_version) == (21, 10)
    assert (doctor.limits("1.23.0").opset, doctor.limits("1.23.0").ir_version) == (23, 11)
    assert doctor.limits("1.99.1").opset == 26
    assert doctor.limits("1.2.0").opset == 19
    assert doctor.denied("1.21.0", "aarch64") and not doctor.denied("1.21.0", "x86_64")
