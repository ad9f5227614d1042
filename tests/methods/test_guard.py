"""The guard in whole bundles: constants are held and reset, images are learned from, for every method that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ttac
from ttac import methods
from ttac.program_writer import runs_forward_once
from ttac.runtime.engine import Session
from ttac.runtime.tensors import map_tensors

DEMO = Path(ttac.__file__).resolve().parent / "demo"
BATCH = 16
GUARDED = [name for name in methods.names() if any(option.name == "guard" for option in methods.find(name).options)]


def adapter(folder: Path, method: str, **settings: object) -> ttac.Adapter:
    ttac.compile(
        DEMO / "fashion_vit.onnx",
        method=method,
        batch=BATCH,
        calibration=DEMO / "fashion_calibration.npz",
        settings={"guard": "on", **settings},
        output=folder / "b.ttac",
    )
    return ttac.load(folder / "b.ttac", threads=1)


def images() -> np.ndarray:
    with np.load(DEMO / "fashion_stream.npz", allow_pickle=False) as arrays:
        return arrays["clean"][:BATCH].astype(np.float32) / 255


def check_constants(guarded: ttac.Adapter, x: np.ndarray, seen: np.ndarray) -> None:
    """A step on `x` changes the predictions of `seen`, constants do not, and the second batch of them resets."""
    first = guarded.predict(seen)
    guarded.step(x)
    assert guarded.stats["held"] == 0
    learned = guarded.predict(seen)
    assert not np.array_equal(first, learned)
    guarded.step(np.zeros_like(x))
    assert np.array_equal(learned, guarded.predict(seen))
    guarded.step(np.zeros_like(x))
    assert np.array_equal(first, guarded.predict(seen))
    assert (guarded.stats["held"], guarded.stats["guard_resets"]) == (2, 1)


@pytest.mark.parametrize("method", [name for name in methods.that_train() if name not in ("mecta", "rotta", "ttt")])
def test_constants_are_held_and_the_state_resets(method: str, tmp_path: Path) -> None:
    """The transformer has no batch norms, which `mecta` needs, and no rotation head, which `ttt` needs.

    `rotta` learns once in four steps.
    """
    guarded = adapter(tmp_path, method, guard_patience=2)
    x = images()
    check_constants(guarded, x, x)


def test_a_guarded_step_equals_an_unguarded_step(tmp_path: Path) -> None:
    x = images()
    guarded = adapter(tmp_path, "tent")
    guarded.step(x)
    ttac.compile(
        DEMO / "fashion_vit.onnx", method="tent", batch=BATCH, settings={"guard": "off"}, output=tmp_path / "c.ttac"
    )
    free = ttac.load(tmp_path / "c.ttac", threads=1)
    free.step(x)
    np.testing.assert_allclose(guarded.predict(x), free.predict(x), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "settings"), [("t3a", {}), ("neo", {}), ("zoa", {}), ("bn", {"statistics": "ema"}), ("mecta", {})]
)
def test_statistics_do_not_follow_constants(method: str, settings: dict[str, str], tmp_path: Path) -> None:
    """Images move the state of methods that follow the stream; constants do not, and a row of them resets it."""
    ttac.compile(
        DEMO / "fashion_resnet_bn.onnx",
        method=method,
        batch=BATCH,
        calibration=DEMO / "fashion_calibration.npz",
        settings={**settings, "guard_patience": 2},
        output=tmp_path / "b.ttac",
    )
    guarded, x = ttac.load(tmp_path / "b.ttac", threads=1), images()
    check_constants(guarded, x, np.ascontiguousarray(x[:8]))


@pytest.mark.parametrize("method", ["neo", "t3a"])
def test_probabilities_carry_the_information_of_their_scores(method: str, tmp_path: Path) -> None:
    """A file that ends in a Softmax is held no more often than the file without it."""
    net = onnx.load(DEMO / "fashion_vit.onnx")
    net.graph.node.append(onnx.helper.make_node("Softmax", [net.graph.output[0].name], ["given"], axis=1))
    net.graph.output[0].name = "given"
    onnx.save(net, tmp_path / "softmax.onnx")
    found = []
    for number, path in enumerate((DEMO / "fashion_vit.onnx", tmp_path / "softmax.onnx")):
        bundle = tmp_path / f"{number}.ttac"
        ttac.compile(path, method=method, batch=BATCH, calibration=DEMO / "fashion_calibration.npz", output=bundle)
        guarded = ttac.load(bundle, threads=1)
        guarded.step(images())
        found.append(guarded.stats["information"])
        assert guarded.stats["held"] == 0
    assert found[0] == pytest.approx(found[1], abs=1e-4) and found[0] > 0.1


@pytest.mark.parametrize("method", [name for name in GUARDED if name != "rotta"])
def test_the_forward_of_every_method_judges_the_batch(method: str) -> None:
    found = methods.find(method)
    assert runs_forward_once(found.program)
    assert all(runs_forward_once(other.get("program", found.program)) for other in found.variants.values())


def test_a_held_batch_does_not_enter_the_memory(tmp_path: Path) -> None:
    """`rotta` runs the forward in few steps, so the guard judges the answer of the teacher."""
    guarded = adapter(tmp_path, "rotta", interval=BATCH, guard_patience=3, guard_information=0.1)
    x = images()
    first = guarded.predict(x)
    guarded.step(x)
    learned, filled = guarded.predict(x), guarded.stats["memory"]
    assert filled > 0 and not np.array_equal(first, learned)
    for held in (1, 2):
        guarded.step(np.zeros_like(x))
        np.testing.assert_array_equal(guarded.predict(x), learned)
        assert (guarded.stats["held"], guarded.stats["memory"]) == (held, filled)
    guarded.step(np.zeros_like(x))
    np.testing.assert_array_equal(guarded.predict(x), first)


def test_a_step_makes_no_engine_call_for_the_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run, x = list[str](), Session.run, images()

    def counted(session: Session, feed: Any, outputs: Any) -> Any:
        calls.append(session.path.stem.partition(".")[0])
        return run(session, feed, outputs)

    monkeypatch.setattr(Session, "run", counted)
    guarded = adapter(tmp_path, "tent")
    guarded.step(x)
    calls.clear()
    guarded.step(x)
    assert calls == ["forward", "backward", "update"]
    calls.clear()
    guarded.step(np.zeros_like(x))
    assert calls == ["forward", "guard-hold"]


def test_a_held_batch_moves_only_the_state_of_the_guard(tmp_path: Path) -> None:
    guarded, x = adapter(tmp_path, "t3a"), images()
    guarded.step(x)
    states = []
    for number in range(2):
        guarded.save(tmp_path / str(number))
        states.append(map_tensors(tmp_path / str(number))[0])
        guarded.step(np.zeros_like(x))
    moved = {name for name, array in states[0].items() if not np.array_equal(array, states[1][name])}
    assert {"guard.row", "guard.held"} <= moved and all(name.startswith("guard.") for name in moved)


@pytest.mark.parametrize("method", ["tent", "t3a"])
def test_predictions_are_the_same_with_the_guard_and_without(method: str, tmp_path: Path) -> None:
    found, x = [], images()
    for number, guard in enumerate(("on", "off")):
        (tmp_path / str(number)).mkdir()
        one = adapter(tmp_path / str(number), method, guard=guard)
        found.append(one.predict(x))
        one.predict(np.zeros_like(x))
        assert one.stats.get("held", 0) == 0
    np.testing.assert_array_equal(*found)
