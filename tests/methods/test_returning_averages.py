"""Running averages after a shift: a clean batch is predicted as before it, and the shift stays adapted to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac

DEMO = Path(ttac.__file__).resolve().parent / "demo"
BATCH, COUNT = 16, 512


def stream() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Images by corruption, and their labels."""
    with np.load(DEMO / "fashion_stream.npz", allow_pickle=False) as arrays:
        images = {name: arrays[name][:COUNT].astype(np.float32) / 255 for name in ("clean", "contrast")}
        return images, arrays["labels"][:COUNT]


def error(adapter: ttac.Adapter, x: np.ndarray, labels: np.ndarray) -> float:
    """Error of `predict` in points."""
    logits = np.concatenate([adapter.predict(x[i : i + BATCH]) for i in range(0, len(x), BATCH)])
    return 100 * float(np.mean(logits.argmax(1) != labels))


@pytest.mark.parametrize(("method", "settings"), [("bn", {"statistics": "ema"}), ("mecta", {})])
def test_a_clean_batch_after_a_shift_is_predicted_as_before(
    method: str, settings: dict[str, str], tmp_path: Path
) -> None:
    images, labels = stream()
    before, shifted, after = dict[str, float](), dict[str, float](), dict[str, float]()
    for guard in ("off", "on"):
        ttac.compile(
            DEMO / "fashion_resnet_bn.onnx",
            method=method,
            batch=BATCH,
            calibration=DEMO / "fashion_calibration.npz",
            settings={**settings, "guard": guard},
            output=tmp_path / f"{guard}.ttac",
        )
        adapter = ttac.load(tmp_path / f"{guard}.ttac", threads=1)
        before[guard] = error(adapter, images["clean"], labels)
        source = error(adapter, images["contrast"], labels)
        for i in range(0, COUNT, BATCH):
            adapter.step(images["contrast"][i : i + BATCH])
        shifted[guard] = source - error(adapter, images["contrast"], labels)
        after[guard] = error(adapter, images["clean"], labels)
    assert after["on"] <= before["on"] + 1 and after["off"] > before["off"] + 1.5
    assert shifted["on"] > 20 and shifted["on"] >= shifted["off"] - 1
