"""Normal forms of models, or their refusals."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from tests.support.source_models import saved
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise


def normal(model: onnx.ModelProto, folder: Path, **options: object) -> ir.Model:
    """The normal form, without the child process."""
    return normalise(load(saved(model, folder)), **{"simplifier": None, **options})  # type: ignore[arg-type]


def refused(error: type[Exception], model: onnx.ModelProto, folder: Path, *parts: str, **options: object) -> None:
    with pytest.raises(error) as caught:
        normal(model, folder, **options)
    for part in parts:
        assert part in str(caught.value), caught.value
    assert "hint:" in str(caught.value)
