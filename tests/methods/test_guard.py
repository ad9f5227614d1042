"""The guard in whole bundles: constants are held and reset, images are learned from, for every method that trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import ttac
from ttac import methods

DEMO = Path(ttac.__file__).resolve().parent / "demo"
BATCH = 16


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

    `rotta` has no guard: it chooses the samples of its memory.
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
