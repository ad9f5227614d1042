"""Whether the engine really runs in 8 bits what was put into 8-bit form: asked of the graph it made of the file."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

import onnx

from ttac.errors import TtacError, UnsupportedError
from ttac.passes.quantize.qdq import Module
from ttac.runtime.engine import QUIET, engine

FLOAT = frozenset({"Conv", "FusedConv", "FusedGemm"})
"""What engines call layers in float32."""

PRODUCTS = frozenset({"Gemm", "MatMul", "FusedMatMul"})
"""Operators that may also be the method's; the engine adds to the name of one that it fuses."""


def float_layers(path: Path, products: Collection[str] = ()) -> list[str]:
    """The names of layers that this machine's engine computes in float32 when it loads the graph at `path`.

    Args:
        products: the names of nodes that are layers, to tell their products from those of a method.

    Raises UnsupportedError if it lacks an operator of the graph.
    """
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = engine().SessionOptions()
        options.log_severity_level = QUIET
        options.optimized_model_filepath = str(optimised)
        # Engines for ARM have kernels for int8 activations by default; those for x86 must be told to use theirs.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        try:
            engine().InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except TtacError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise UnsupportedError(
                f"the engine does not run the 8-bit graph: {reason}",
                where=f"onnxruntime {engine().__version__}",
                hint="take the operator out of `int8_operators` of the target, or leave out `--quantize int8`",
            ) from error
        graph = onnx.load(str(optimised), load_external_data=False).graph
    return [
        str(node.name)
        for node in graph.node
        if node.op_type in FLOAT or (node.op_type in PRODUCTS and node.name.split("/MatMulAddFusion")[0] in products)
    ]


def refuse_float_layers(path: Path, modules: tuple[Module, ...]) -> None:
    """Raise UnsupportedError if more layers run in float32 than the modules say."""
    stated = sum(module.runs == "float32" and module.operators == "Conv" for module in modules)
    found = float_layers(path, {module.node for module in modules if module.runs == "int8"})
    if len(found) <= stated:
        return
    raise UnsupportedError(
        f"{len(found) - stated} layers would run in float32: this engine has no 8-bit kernel for them",
        where=", ".join(f"`{name}`" for name in found[:4]),
        hint="compile with another onnxruntime, or leave out `--quantize int8`",
    )
