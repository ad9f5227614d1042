"""No room edits a model of the state that it takes."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from tests.support.whole_models import MODELS, samples
from ttac import rooms
from ttac.options import CompileOptions
from ttac.reports.progress import RoomLog

ROOMS = (
    rooms.read_samples,
    rooms.normalise_model,
    rooms.read_head,
    rooms.choose_norms,
    rooms.settle_settings,
    rooms.quantize_layers,
    rooms.adapt_model,
    rooms.compute_constants,
    rooms.differentiate_model,
)


def content(model: ir.Model | None) -> bytes:
    """The model as bytes."""
    return b"" if model is None else ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "choices",
    [
        {"method": "tent", "norms": "insert"},
        {"method": "sar", "train": "all"},
        {"method": "leantta", "quantize": "int8"},
    ],
    ids=lambda choices: str(choices["method"]),
)
def test_no_room_edits_the_models_of_its_state(choices: dict[str, str], tmp_path: Path) -> None:
    given = {**choices, "batch": 4, "calibration": samples((3, 16, 16), 64), "output": tmp_path / "b.ttac"}
    log = RoomLog(lambda line: None)
    state = rooms.load_model(CompileOptions.from_mapping(MODELS["resnet"], given), log)
    for room in ROOMS:
        before = [content(model) for model in (state.source, state.model, state.infer)]
        following = room(state, log)
        assert [content(model) for model in (state.source, state.model, state.infer)] == before, room.__name__
        state = following
    assert state.joint is not None and state.infer is not None
