"""Events of the guard, from the stats before and after a step, and as a loaded bundle announces them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from tests.support.whole_models import compiled
from ttac.runtime.adapter import REJECTED_IN_A_ROW
from ttac.runtime.commit import State
from ttac.runtime.events import Event, events

DEMO = Path(ttac.__file__).resolve().parent / "demo"


def stats(step: int, row: int, resets: int = 0) -> dict[str, Any]:
    return {"steps": step, "held_in_a_row": float(row), "guard_resets": float(resets)}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"steps": 0}, {"steps": 1}, []),
        ({"steps": 0}, stats(1, 0), []),
        ({"steps": 0}, stats(1, 1), [Event("hold", 1, 1)]),
        (stats(1, 1), stats(2, 2), []),
        (stats(2, 2), stats(3, 0), [Event("resume", 3, 2)]),
        (stats(2, 2), stats(3, 3, 1), [Event("reset", 3, 3)]),
        (stats(3, 3, 1), stats(4, 1, 1), []),
    ],
)
def test_transitions(before: dict[str, Any], after: dict[str, Any], expected: list[Event]) -> None:
    assert list(events(before, after)) == expected


def test_a_bundle_announces_holds_and_resets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net, calibration = DEMO / "fashion_vit.onnx", DEMO / "fashion_calibration.npz"
    settings = {"guard_patience": 2}
    ttac.compile(net, calibration=calibration, batch=16, settings=settings, output=tmp_path / "b.ttac")
    with np.load(DEMO / "fashion_stream.npz", allow_pickle=False) as arrays:
        x = arrays["clean"][:16].astype(np.float32) / 255
    adapter, heard = ttac.load(tmp_path / "b.ttac"), list[Event]()
    adapter.on_event = heard.append
    with caplog.at_level(logging.INFO, "ttac"):
        for batch in (x, x * 0, x, x * 0, x * 0):
            adapter.step(batch)
    assert heard == [Event("hold", 2, 1), Event("resume", 3, 1), Event("hold", 4, 1), Event("reset", 5, 2)]
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "INFO", "WARNING"]
    assert (
        caplog.records[-1].getMessage()
        == f"`{adapter.path}`: step 5: the guard reset the state, after 2 held batches in a row"
    )


def test_returns_after_a_rejected_state_are_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state that rejects every step resets its counters too: the next return is an event again."""
    net, calibration = DEMO / "fashion_resnet_bn.onnx", DEMO / "fashion_calibration.npz"
    settings = {"guard_check": 4, "guard_loss": 0.0}
    ttac.compile(net, method="t3a", calibration=calibration, batch=16, settings=settings, output=tmp_path / "b.ttac")
    with np.load(DEMO / "fashion_stream.npz", allow_pickle=False) as arrays:
        x = 1 - arrays["clean"].astype(np.float32) / 255
    adapter, heard = ttac.load(tmp_path / "b.ttac"), list[Event]()
    adapter.on_event = heard.append

    def until_a_return() -> None:
        """Steps of negative images, until the check turns the state back."""
        for i in range(0, 1008, 16):
            adapter.step(x[i : i + 16])
            if heard and heard[-1].kind == "return":
                return

    until_a_return()
    assert adapter.stats["guard_returns"] == 1 and heard.pop().kind == "return"
    with monkeypatch.context() as patch:
        patch.setattr(State, "commit", lambda *_: False)
        for _ in range(REJECTED_IN_A_ROW):
            adapter.step(x[:16])
    assert adapter.stats["resets"] == 1
    heard.clear()
    until_a_return()
    assert adapter.stats["guard_returns"] == 1 and heard[-1].kind == "return"


def test_one_sample_of_batch_statistics_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = DEMO / "fashion_resnet_bn_unfolded.onnx"
    adapter = ttac.load(compiled(net, tmp_path, method="bn", batch=4))
    for _ in range(2):
        adapter.step(np.zeros((1, 1, 28, 28), np.float32))
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "statistics of the batch" in record.getMessage()
    adapter.reset()
    adapter.step(np.random.default_rng(0).random((4, 1, 28, 28), np.float32))
    assert len(caplog.records) == 1
