"""The method source returns the outputs of the ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import ttac
from tests.support.whole_models import (
    MODELS,
    compiled,
    golden,
    samples,
    state_of,
)


@pytest.mark.parametrize("name", ["mobilenet_v3", "densenet", "volume", "transformer"])
def test_source_is_the_plain_model(name: str, tmp_path: Path) -> None:
    adapter = ttac.load(compiled(MODELS[name], tmp_path, method="source", batch=8))
    x = samples(adapter.input_shape)
    plain = ort.InferenceSession(str(MODELS[name]), providers=["CPUExecutionProvider"])
    (expected,) = plain.run(None, {"x": x})
    found = adapter.step(x)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(found, golden(name)["source_logits"], rtol=0, atol=1e-5 * scale)
    np.testing.assert_array_equal(adapter.predict(x), found)
    assert state_of(adapter) == {}
    for size in (1, 3):
        np.testing.assert_allclose(adapter.step(x[:size]), found[:size], rtol=0, atol=1e-6 * scale)
