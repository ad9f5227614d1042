"""Benchmark networks as ONNX files."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.networks import build


def export(name: str, folder: Path) -> Path:
    """Write the named network as an ONNX file with its norms and a symbolic batch, and return the path."""
    path = folder / f"{name}.onnx"
    model, side = build(name)
    torch.onnx.export(
        model,
        (torch.randn(2, 3, side, side),),
        str(path),
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        opset_version=17,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
    )
    return path
