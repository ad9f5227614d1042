"""TTT: steps of the published code, the recognition of the rotation head, and the models that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ttac
from tests.support.official_ttt import MODEL, SETTINGS, images, official
from tests.support.source_models import saved
from tests.support.whole_models import MODELS, compiled, refused, state_of
from ttac.errors import UnsupportedError, UsageError

CHOICES: dict[str, Any] = {"method": "ttt", "logits": "logits", "norms": "keep"}
RANGE = {"black": "-1", "white": "1"}


def adapted(run: str, folder: Path, **choices: Any) -> tuple[ttac.Adapter, dict[str, np.ndarray]]:
    """Return the adapter after the six images, and the arrays of the run as the golden file names them."""
    settings = {**SETTINGS[run], **choices.pop("settings", {})}
    bundle = compiled(MODEL, folder, **CHOICES, **{"batch": 1, "train": "all", "settings": settings, **choices})
    adapter = ttac.load(bundle, threads=1)
    logits = [adapter.step(image[None])["logits"] for image in images()]
    assert adapter.stats["rejected"] == 0
    return adapter, {"logits": np.concatenate(logits), **state_of(adapter)}


@pytest.mark.parametrize("run", SETTINGS)
def test_six_images_equal_the_published_code(run: str, tmp_path: Path) -> None:
    """Logits of each image after its update, and all shared weights after the last image."""
    found, expected = adapted(run, tmp_path)[1], official(run)
    expected.pop("adapted")
    for name, value in expected.items():
        ours = found[name] if name in found else found[name.replace(".weight", ".scale")]
        np.testing.assert_allclose(ours, value, rtol=0, atol=1e-4, err_msg=name)


def test_the_golden_gate_opens_and_closes() -> None:
    assert set(official("gate")["adapted"].tolist()) == {0.0, 1.0}
    assert np.abs(official("online")["logits"] - official("standard")["logits"]).max() > 1e-2


def test_norms_train_by_default_and_the_classifier_stays(tmp_path: Path) -> None:
    adapter, found = adapted("online", tmp_path, train="norms")
    trained = {name for name in found if name.endswith((".scale", ".bias"))}
    assert trained and not any("classifier" in name for name in trained)
    adapter.reset()
    again = adapter.step(images()[:1])["logits"]
    np.testing.assert_array_equal(again[0], found["logits"][0])


def test_a_held_batch_returns_the_plain_prediction(tmp_path: Path) -> None:
    settings = {**SETTINGS["online"], "guard": "on", "guard_information": 1.0, "guard_patience": 1000}
    bundle = compiled(MODEL, tmp_path, **CHOICES, batch=4, settings=settings)
    adapter, flat = ttac.load(bundle, threads=1), np.zeros((4, 3, 8, 8), np.float32)
    adapter.step(images()[:4])
    for _ in range(8):
        held = adapter.step(flat)["logits"]
    assert adapter.stats["held_in_a_row"] >= 1
    np.testing.assert_array_equal(held, adapter.predict(flat)["logits"])


def test_calibration_checks_that_the_output_recognises_turns() -> None:
    message = refused(UnsupportedError, MODEL, **CHOICES, settings=RANGE, calibration=images())
    assert "of the turns of calibration images" in message and "chance is 25%" in message


def test_models_without_a_rotation_head_are_refused() -> None:
    message = refused(UnsupportedError, MODELS["resnet"], method="ttt", settings=RANGE)
    assert "no second output [N, 4]" in message and "`--method tent`" in message


def test_the_user_names_one_of_several_outputs(tmp_path: Path) -> None:
    net = onnx.load(MODEL)
    net.graph.node.append(onnx.helper.make_node("Relu", ["rotation"], ["other"]))
    net.graph.output.append(onnx.helper.make_tensor_value_info("other", 1, ["N", 4]))
    path = saved(net, tmp_path)
    assert "several outputs" in refused(UsageError, path, **CHOICES, settings=RANGE)
    assert "no second output" in refused(UsageError, path, **CHOICES, settings={**RANGE, "rotation": "logits"})
    assert compiled(path, tmp_path, **CHOICES, batch=1, settings={**RANGE, "rotation": "rotation"}).exists()


def test_images_that_are_not_square_are_refused() -> None:
    message = refused(UnsupportedError, MODELS["signal"], **{**CHOICES, "logits": None})
    assert "only images" in message
