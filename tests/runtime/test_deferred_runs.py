"""State that deferred runs overwrite: equal to an exchange at once, and after any interruption whole or refused."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from tests.support import tiny_bundles as tiny
from tests.support.tiny_bundles import batch, state_of
from ttac.errors import RuntimeMissingError, VerificationError
from ttac.runtime.adapter import Adapter
from ttac.runtime.tensors import leave_on_disk

GRAPHS = {
    "forward": """
forward (float[N,3] x, float[3] a, float[2] b) => (float[N,3] logits, float[3] gradient) <int64[1] rows = {0}> {
  moved = Add(x, a)
  scale = ReduceMax <keepdims = 1> (b)
  logits = Mul(moved, scale)
  gradient = ReduceMean <keepdims = 0> (logits, rows)
}
""",
    "update": """
update (float count) => (float count_next) <float one = {1}> {
  count_next = Add(count, one)
}
""",
    "update-1": """
first (float[3] a, float[3] gradient, float count_next) => (float[3] a_next) {
  part = Div(gradient, count_next)
  a_next = Sub(a, part)
}
""",
    "update-2": """
second (float[2] b, float[3] gradient) => (float[2] b_next, float[2] memory_next) <int64[2] ends = {0, 2}> {
  memory_next = Gather(gradient, ends)
  power = Mul(memory_next, memory_next)
  b_next = Add(b, power)
}
""",
}
STATE = {
    "a": (np.array([1, -2, 3], np.float32), "parameter"),
    "b": (np.array([0.5, 0.25], np.float32), "parameter"),
    "memory": (np.zeros(2, np.float32), "optimizer"),
    "count": (np.zeros((), np.float32), "counter"),
}
MOVES = {
    "update": {"count_next": "count"},
    "update-1": {"a_next": "a"},
    "update-2": {"b_next": "b", "memory_next": "memory"},
}
RETURN = {"return": ["logits"]}
DEFERRED = [{"run": "update"}, {"run": "update-1", "deferred": True}, {"run": "update-2", "deferred": True}]


def bundle(folder: Path, words: Sequence[Any] = (*DEFERRED, RETURN)) -> Path:
    folder.mkdir()
    graphs = {name: {"state": MOVES.get(name, {})} for name in GRAPHS}
    manifest = tiny.manifest_of(graphs, STATE, [{"run": "forward"}, *words], 3)
    return tiny.write_bundle(folder, {name: tiny.parse(text) for name, text in GRAPHS.items()}, STATE, manifest)


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    return ttac.load(bundle(tmp_path / "deferred.ttac"))


def on_call(adapter: Adapter, graph: str, number: int, act: Callable[[], Any]) -> None:
    """Replace the given run of the graph in a step, counted from 1, by `act`; a None result means the real outputs."""
    run, calls = adapter._executor.form.graphs[graph].run, []

    def counted(feed: Any, outputs: Sequence[str]) -> Any:
        calls.append(graph)
        made = act() if len(calls) == number else None
        return made if made is not None else run(feed, outputs)

    adapter._executor.form.graphs[graph].run = counted  # type: ignore[method-assign]


def fail() -> None:
    raise RuntimeMissingError("no memory")


def test_deferred_runs_equal_immediate_runs(tmp_path: Path) -> None:
    deferred = ttac.load(bundle(tmp_path / "deferred"))
    once = ttac.load(bundle(tmp_path / "once", [*({"run": word["run"]} for word in DEFERRED), RETURN]))
    for seed in range(5):
        np.testing.assert_array_equal(deferred.step(batch(seed=seed)), once.step(batch(seed=seed)))
        np.testing.assert_equal(state_of(deferred), state_of(once))
        np.testing.assert_array_equal(deferred.predict(batch(seed=9)), once.predict(batch(seed=9)))
    assert state_of(deferred)["count"] == 5 and deferred.stats["rejected"] == 0


def test_the_numbers_match_the_formulas(adapter: Adapter) -> None:
    before, x = {name: array for name, (array, _) in STATE.items()}, batch()
    logits = (x + before["a"]) * before["b"].max()
    np.testing.assert_allclose(adapter.step(x), logits, rtol=1e-6)
    gradient = logits.mean(axis=0)
    expected = {
        "a": before["a"] - gradient,
        "b": before["b"] + gradient[[0, 2]] ** 2,
        "memory": gradient[[0, 2]],
        "count": 1,
    }
    for name, array in state_of(adapter).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5)


def test_the_state_stays_in_its_place(adapter: Adapter) -> None:
    before = adapter._state.arrays()
    adapter.step(batch())
    adapter.reset()
    adapter.step(batch())
    after = adapter._state.arrays()
    assert [name for name in STATE if np.shares_memory(before[name], after[name])] == ["a", "b", "memory"]


def test_inputs_are_freed_before_the_next_run(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    commit = adapter._state.commit

    def spy(pending: Any, deferred: Any) -> bool:
        on_call(adapter, "update-2", 2, lambda: held.extend(len(run.feed) for run in deferred))
        for run in deferred:
            run.graph = adapter._executor.form.graphs["update-1" if "a" in run.feed else "update-2"]
        return commit(pending, deferred)

    monkeypatch.setattr(adapter._state, "commit", spy)
    adapter.step(batch())
    assert held == [0, 2]


def test_reset_save_and_restore_are_exact(adapter: Adapter, tmp_path: Path) -> None:
    first = [adapter.step(batch(seed=seed)) for seed in range(2)]
    adapter.save(tmp_path / "state.safetensors")
    saved = state_of(adapter)
    then = [adapter.step(batch(seed=seed)) for seed in range(2)]
    adapter.reset()
    for name, (array, _) in STATE.items():
        np.testing.assert_array_equal(state_of(adapter)[name], array)
    np.testing.assert_array_equal([adapter.step(batch(seed=seed)) for seed in range(2)], first)
    adapter.step(batch(seed=5))
    adapter.restore(tmp_path / "state.safetensors")
    np.testing.assert_equal(state_of(adapter), saved)
    np.testing.assert_array_equal([adapter.step(batch(seed=seed)) for seed in range(2)], then)


def resident(path: Path) -> int:
    """Bytes of the file's mappings that are in this process's memory."""
    found, of_it = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            of_it = line.endswith(str(path))
        elif of_it and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux reports the resident pages of a file")
def test_initial_values_of_buffers_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a reset reads them; in memory they would be a second copy of the state."""
    monkeypatch.setattr("ttac.runtime.hash_check.PRIVATE_BYTES", 0)
    for name, words in (
        ("deferred", [*DEFERRED, RETURN]),
        ("once", [*({"run": word["run"]} for word in DEFERRED), RETURN]),
    ):
        adapter = ttac.load(bundle(tmp_path / name, words))
        file = (tmp_path / name / "state.safetensors").resolve()
        assert (resident(file) > 0) == (name == "once")
        adapter.step(batch())
        adapter.reset()
        adapter.step(batch())
        assert (resident(file) > 0) == (name == "once")
        adapter.reset()
        np.testing.assert_equal(state_of(adapter), {key: array for key, (array, _) in STATE.items()})


def test_arrays_without_a_file_are_unchanged() -> None:
    array = np.arange(4)
    leave_on_disk([array, array[1:]])
    assert array.tolist() == [0, 1, 2, 3]


def test_an_infinite_next_state_changes_nothing(adapter: Adapter) -> None:
    adapter.step(batch())
    before = state_of(adapter)
    x = np.full((4, 3), 1e20, np.float32)  # the square is infinite, and only `update-2` computes it
    assert np.isfinite(adapter.step(x)).all() and adapter.stats["rejected"] == 1
    np.testing.assert_equal(state_of(adapter), before)
    adapter.step(batch())
    assert state_of(adapter)["count"] == 2


@pytest.mark.parametrize(("graph", "number"), [("update-1", 1), ("update-2", 1), ("update-1", 2)])
def test_a_failure_before_the_first_write_changes_nothing(adapter: Adapter, graph: str, number: int) -> None:
    adapter.step(batch())
    before, stats = state_of(adapter), adapter.stats
    on_call(adapter, graph, number, fail)
    with pytest.raises(RuntimeMissingError, match="no memory"):
        adapter.step(batch(seed=1))
    np.testing.assert_equal(state_of(adapter), before)
    assert adapter.stats == stats
    adapter.step(batch(seed=1))
    assert state_of(adapter)["count"] == 2


def torn(adapter: Adapter, act: Callable[[], Any] = fail, error: type[Exception] = RuntimeMissingError) -> None:
    """Fail at the second large tensor, after the first is written."""
    on_call(adapter, "update-2", 2, act)
    with pytest.raises(error):
        adapter.step(batch())


def test_a_torn_state_is_refused_until_it_is_reset(adapter: Adapter, tmp_path: Path) -> None:
    before = adapter.predict(batch())
    torn(adapter)
    uses = [adapter.step, adapter.predict, lambda x: adapter.save(tmp_path / "state.safetensors")]
    for use in uses:
        with pytest.raises(RuntimeMissingError, match="half of one step and half of the next") as caught:
            use(batch())
        assert "`reset()`" in caught.value.hint and "deferred.ttac" in caught.value.where
    assert not (tmp_path / "state.safetensors").exists()
    adapter.reset()
    np.testing.assert_array_equal(adapter.predict(batch()), before)
    adapter.step(batch())


def test_a_torn_state_can_be_restored(adapter: Adapter, tmp_path: Path) -> None:
    adapter.step(batch())
    adapter.save(tmp_path / "state.safetensors")
    before = state_of(adapter)
    torn(adapter)
    adapter.restore(tmp_path / "state.safetensors")
    np.testing.assert_equal(state_of(adapter), before)
    adapter.step(batch())
    assert state_of(adapter)["count"] == 2


def test_a_graph_with_random_outputs_is_refused(adapter: Adapter) -> None:
    def not_a_number() -> list[Any]:
        return [adapter._device.tensor(np.full(2, np.nan, np.float32))] * 2

    torn(adapter, not_a_number, VerificationError)
    assert np.isfinite(state_of(adapter)["b"]).all()
    with pytest.raises(RuntimeMissingError, match="half of the next"):
        adapter.predict(batch())


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_until_the_state_is_whole(adapter: Adapter, tmp_path: Path) -> None:
    def interrupt() -> None:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)

    other = ttac.load(bundle(tmp_path / "other"))
    other.step(batch())
    on_call(adapter, "update-2", 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        adapter.step(batch())
    np.testing.assert_equal(state_of(adapter), state_of(other))
    np.testing.assert_array_equal(adapter.step(batch(seed=1)), other.step(batch(seed=1)))


def test_a_thread_commits_without_a_signal_handler(adapter: Adapter) -> None:
    worker = threading.Thread(target=adapter.step, args=(batch(),))
    worker.start()
    worker.join()
    assert state_of(adapter)["count"] == 1


def deferred(graph: str, **more: Any) -> dict[str, Any]:
    return {"run": graph, "deferred": True, **more}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([{"run": "update-1", "deferred": False}], "`programs.step[1].deferred` is not `true`"),
        ([{"run": "update-1", "deferred": 1}], "`programs.step[1].deferred` is not `true`"),
        ([deferred("update-2", only=["b_next"])], "`programs.step[1].deferred` excludes outputs by `only`"),
        ([{"repeat": 2, "do": [deferred("update-1")]}], "`programs.step[1].do` has a deferred run inside `repeat`"),
        ([{"repeat": 2, "do": [{"when": "b", "then": [deferred("update-1")]}]}], "has a deferred run inside `repeat`"),
    ],
)
def test_manifests_with_invalid_deferred_runs(tmp_path: Path, words: list[Any], problem: str) -> None:
    with pytest.raises(VerificationError) as caught:
        bundle(tmp_path / "b", [{"run": "update"}, *words, RETURN][1:])
    assert problem in str(caught.value)


UPDATE = {"run": "update"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([deferred("forward")], "defers graph `forward`, and its output `logits` is no state"),
        ([UPDATE, deferred("update-1"), {"run": "forward"}], "touches `a` in graph `forward`"),
        ([UPDATE, deferred("update-1"), {"reset": "all"}], "touches `a` in `reset`"),
        ([UPDATE, deferred("update-1"), deferred("update-1")], "touches `a` in graph `update-1`"),
        ([UPDATE, deferred("update-1"), {"run": "update-1"}], "touches `a` in graph `update-1`"),
        ([UPDATE, deferred("update-1"), {"return": ["a"]}], "touches `a` in `return`"),
        ([deferred("update-2"), {"return": ["b_next"]}], "touches `b_next` in `return`"),
        ([deferred("update-2"), {"when": "memory", "then": [UPDATE]}], "touches `memory` in `when`"),
        ([UPDATE, {"when": "b", "then": [deferred("update-1")]}, {"run": "forward"}], "touches `a` in graph `forward`"),
        ([deferred("update"), deferred("update-1")], "touches `count_next` in graph `update-1`"),
    ],
)
def test_programs_that_use_deferred_state(tmp_path: Path, words: list[Any], problem: str) -> None:
    folder = bundle(tmp_path / "b", words if "return" in words[-1] else [*words, RETURN])
    with pytest.raises(VerificationError) as caught:
        ttac.load(folder)
    assert problem in str(caught.value) and "`programs.step`" in str(caught.value)


def test_a_deferred_run_may_read_reset_state(tmp_path: Path) -> None:
    words = [UPDATE, {"reset": ["a"]}, deferred("update-1"), RETURN]
    adapter = ttac.load(bundle(tmp_path / "b", words))
    for _ in range(2):
        gradient = adapter.step(batch()).mean(axis=0)
    np.testing.assert_allclose(state_of(adapter)["a"], STATE["a"][0] - gradient / 2, rtol=1e-5)


def test_a_reset_of_deferred_state_keeps_its_buffer(tmp_path: Path) -> None:
    words = [UPDATE, {"when": "memory", "then": [{"reset": "all"}], "otherwise": DEFERRED[1:]}, RETURN]
    adapter = ttac.load(bundle(tmp_path / "b", words))
    place = adapter._state.arrays()["a"]
    x = np.ones((4, 3), np.float32)
    for expected in (1, 0, 1):  # `memory` is 0 at first, then the positive mean of the logits
        adapter.step(x)
        assert state_of(adapter)["count"] == expected
        assert np.shares_memory(adapter._state.arrays()["a"], place)
        assert np.array_equal(place, STATE["a"][0]) == (expected == 0)


def test_a_branch_not_taken_defers_nothing(tmp_path: Path) -> None:
    words = [UPDATE, {"when": "memory", "then": [deferred("update-1")]}, RETURN]
    adapter = ttac.load(bundle(tmp_path / "b", words))
    adapter.step(batch())
    assert state_of(adapter)["count"] == 1
    np.testing.assert_array_equal(state_of(adapter)["a"], STATE["a"][0])
