"""The words of a program, alone and together, and programs that are refused."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from tests.support import tiny_bundles as tiny
from tests.support.tiny_bundles import batch, state_of
from ttac.errors import RuntimeMissingError, VerificationError
from ttac.runtime.engine import Session

RETURN = {"return": ["logits"]}


def level_after(folder: Path, *words: Any) -> float:
    """The value of `level` that the last forward of a step reads."""
    adapter = ttac.load(tiny.counting(folder, [*words, {"run": "forward"}, RETURN]))
    return float(adapter.step(np.zeros((2, 3), np.float32))[0, 0])


def test_a_value_dies_after_its_last_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Residuals that outlive their readers are the difference between the planned and the measured peak."""
    gates: list[weakref.ref[Any]] = []
    alive_at: dict[str, bool] = {}
    run = Session.run

    def watched(session: Session, feed: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        alive_at[session.path.stem] = any(gate() is not None for gate in gates)
        tensors = run(session, feed, outputs)
        if session.path.stem == "measure":
            gates.extend(weakref.ref(tensor) for tensor in tensors)
        return tensors

    monkeypatch.setattr(Session, "run", watched)
    choice = {"when": "gate", "then": [{"run": "double"}], "otherwise": [{"run": "raise"}]}
    level_after(tmp_path / "b", {"run": "measure", "only": ["gate"]}, choice)
    assert gates and alive_at == {"measure": False, "raise": True, "forward": False}


def test_later_runs_see_pending_state(tmp_path: Path) -> None:
    assert level_after(tmp_path / "b", {"run": "raise"}, {"run": "double"}) == 4


def test_repeat(tmp_path: Path) -> None:
    assert level_after(tmp_path / "b", {"repeat": 3, "do": [{"run": "double"}, {"run": "raise"}]}) == 15


@pytest.mark.parametrize(("raises", "level"), [(1, 3), (2, 6)])
def test_when(tmp_path: Path, raises: int, level: float) -> None:
    words = [{"run": "raise"}] * raises
    choice = {"when": "gate", "then": [{"run": "double"}], "otherwise": [{"run": "raise"}]}
    assert level_after(tmp_path / "b", *words, {"run": "measure", "only": ["gate"]}, choice) == level


def test_when_on_a_state_tensor_without_otherwise(tmp_path: Path) -> None:
    assert level_after(tmp_path / "b", {"when": "level", "then": [{"run": "raise"}]}) == 2


def test_when_may_return_on_both_branches(tmp_path: Path) -> None:
    branches = {"then": [{"run": "forward"}, RETURN], "otherwise": [{"return": ["x"]}]}
    step = [{"run": "measure", "only": ["gate"]}, {"when": "gate", **branches}]
    adapter = ttac.load(tiny.counting(tmp_path / "b", step))
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(adapter.step(x), x)


@pytest.mark.parametrize("names", ["all", ["level"]])
def test_reset_inside_a_step_is_pending_too(tmp_path: Path, names: object) -> None:
    step = [{"run": "forward"}, {"run": "raise"}, {"when": "gate", "then": [{"reset": names}]}, RETURN]
    adapter = ttac.load(tiny.counting(tmp_path / "b", [{"run": "measure", "only": ["gate"]}, *step]))
    x = np.zeros((1, 3), np.float32)
    assert [float(adapter.step(x)[0, 0]) for _ in range(5)] == [1, 2, 3, 1, 2]
    assert state_of(adapter)["other"] == 7


def test_rows_limit_the_user_inputs_only(tmp_path: Path) -> None:
    adapter = ttac.load(tiny.counting(tmp_path / "b", [{"run": "measure", "rows": 2}, {"run": "forward"}, RETURN]))
    for n, seen in ((4, 2), (1, 1)):
        assert len(adapter.step(np.zeros((n, 3), np.float32))) == n
        assert adapter.stats["seen"] == seen


def test_a_run_may_be_fed_another_value(tmp_path: Path) -> None:
    """Also a value of an earlier run of the same graph, cut to `rows`; the input of the user is unchanged."""
    fed = {"run": "forward", "feed": {"x": "logits"}}
    cut = {"run": "measure", "feed": {"x": "logits"}, "rows": 2}
    folder = tiny.counting(tmp_path / "b", [{"run": "forward"}, fed, cut, RETURN])
    adapter, x = ttac.load(folder), batch()
    np.testing.assert_array_equal(adapter.step(x), x + 1 + 1)
    assert adapter.stats["seen"] == 2
    np.testing.assert_array_equal(adapter.predict(x), x + 1)


def test_a_run_computes_only_outputs_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[tuple[str, ...]] = []
    run = Session.run

    def spy(self: Session, feed: Any, outputs: Sequence[str]) -> Any:
        fetched.append(tuple(outputs))
        return run(self, feed, outputs)

    monkeypatch.setattr(Session, "run", spy)
    adapter = ttac.load(tiny.trained(tmp_path / "b"))
    adapter.step(batch())
    adapter.predict(batch())
    assert fetched == [("logits", "h"), ("scale_grad", "loss"), ("scale_next",), ("logits",)]
    fetched.clear()
    manifest = tiny.read(tmp_path / "b")
    manifest["programs"]["predict"][0]["only"] = ["logits", "h"]
    tiny.reseal(tmp_path / "b", manifest)
    ttac.load(tmp_path / "b").predict(batch())
    assert fetched == [("logits",)], "an output in `only` without a reader is not computed"


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ([{"run": "forward"}], "`programs.step` does not end with `return`"),
        ([], "`programs.step` does not end with `return`"),
        ([{"when": "x", "then": [RETURN]}], "`programs.step` does not end with `return`"),
        ([RETURN, {"run": "forward"}, RETURN], "`programs.step[0]` returns, so the next word is never reached"),
        ([{"repeat": 2, "do": [RETURN]}, RETURN], "`programs.step[0].do` returns inside `repeat`"),
        ([{"repeat": 0, "do": []}, RETURN], "`programs.step[0]` is 0, not a whole number of at least 1"),
        ([{"run": "forward", "rows": True}, RETURN], "`programs.step[0].rows` is True"),
        ([{"run": "forward", "late": True}, RETURN], "`programs.step[0]` has the unknown key `late`"),
        ([{"run": "forward", "feed": ["x"]}, RETURN], "`programs.step[0].feed` is not an object"),
        ([{"run": "forward", "feed": {"x": 1}}, RETURN], "`programs.step[0].feed`"),
        ([{"run": "sideways"}, RETURN], "runs `sideways`, which `graphs` lacks"),
        ([{"reset": ["nothing"]}, RETURN], "resets `nothing`, which the state table lacks"),
        ("run", "`programs.step` is not a list"),
        (["run"], "`programs.step[0]` is not an object"),
    ],
)
def test_invalid_programs(tmp_path: Path, step: Any, problem: str) -> None:
    with pytest.raises(VerificationError) as caught:
        tiny.counting(tmp_path / "b", step)
    assert problem in str(caught.value) and "at `manifest.json`" in str(caught.value)


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ([RETURN], "reads `logits` in `return`, and nothing provides it"),
        ([{"run": "forward", "only": ["warm"]}, RETURN], "wants `warm` of graph `forward`"),
        ([{"run": "forward", "feed": {"y": "x"}}, RETURN], "feeds `y` to graph `forward`, which has no such input"),
        ([{"run": "forward", "feed": {"x": "y"}}, RETURN], "reads `y` in graph `forward`, and nothing provides it"),
        (
            [{"when": "x", "then": [{"run": "forward"}]}, RETURN],
            "reads `logits` in `return`, and nothing provides it",
        ),
    ],
)
def test_programs_that_read_missing_values(tmp_path: Path, step: Any, problem: str) -> None:
    folder = tiny.counting(tmp_path / "b", step)
    with pytest.raises(VerificationError, match=problem):
        ttac.load(folder)


@pytest.mark.parametrize("word", [{"dance": 1}, {}, {"run": "forward", "reset": "all"}, {"host": "cma_ask"}])
def test_words_of_a_newer_ttac(tmp_path: Path, word: dict[str, Any]) -> None:
    with pytest.raises(RuntimeMissingError, match=r"this ttac knows the program words"):
        tiny.counting(tmp_path / "b", [word, RETURN])


@pytest.mark.parametrize("levels", [1, 3])
def test_programs_of_too_many_words_are_refused(tmp_path: Path, levels: int) -> None:
    step: list[dict[str, Any]] = [{"run": "raise"}]
    for _ in range(levels):
        step = [{"repeat": 10**9, "do": step}]
    with pytest.raises(VerificationError, match="words with all repetitions, and 10000 is the limit"):
        tiny.counting(tmp_path / "b", [*step, RETURN])


@pytest.mark.parametrize("name", ["level", "gate"])
def test_an_output_of_another_shape_is_refused(tmp_path: Path, name: str) -> None:
    folder = tiny.counting(tmp_path / "b", [{"run": "measure"}, {"return": [name]}])
    with pytest.raises(VerificationError, match=r"`logits` is float32 \[\], the manifest says float32 \[4, 3\]"):
        ttac.load(folder).step(batch())


def test_an_empty_scalar_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    text = """forward (float[N,3] x) => (float[N,3] logits, float[K] loss) <int64[1] none = {0}> {
      logits = Relu(x)
      flat = Reshape <allowzero = 0> (x, rest)
      loss = Slice(flat, none, none)
    }""".replace("<int64[1] none = {0}>", "<int64[1] none = {0}, int64[1] rest = {-1}>")
    manifest = tiny.manifest_of({"forward": {"stats": {"loss": "loss"}}}, {}, tiny.STEP, 3)
    tiny.write_bundle(folder, {"forward": tiny.parse(text)}, {}, manifest)
    with pytest.raises(VerificationError, match="an empty tensor as a scalar"):
        ttac.load(folder).step(batch())


def test_deep_programs_are_refused(tmp_path: Path) -> None:
    step: list[dict[str, Any]] = [{"run": "forward"}]
    for _ in range(20):
        step = [{"repeat": 1, "do": step}]
    with pytest.raises(VerificationError, match="levels deep"):
        tiny.counting(tmp_path / "b", [*step, RETURN])
