"""A model file with external weights."""

from __future__ import annotations

from pathlib import Path

import onnx

from tests.support.source_models import source

HEAD = {"fc.weight": (5, 4), "fc.bias": (5,)}


def external(folder: Path, **changes: str) -> Path:
    """A model whose `conv.weight` lies in `weights.bin`, with the entries of its external data changed."""
    model = source()
    tensor = next(t for t in model.graph.initializer if t.name == "conv.weight")
    (folder / "weights.bin").write_bytes(b"\0" * 16 + tensor.raw_data)
    entries = {"location": "weights.bin", "offset": "16", "length": str(len(tensor.raw_data)), **changes}
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
