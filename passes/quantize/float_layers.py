"""Ask the engine which layers it really runs in 8 bits, by the graph that it makes of the file."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

import onnx

from ttac.errors import TtacError, UnsupportedError
from ttac.passes.quantize.module_list import Module
from ttac.runtime.engine import QUIET
from ttac.runtime.engine_import import engine

FLOAT = frozenset({"Conv", "FusedConv", "FusedGemm"})
"""Names that engines give to layers in float32."""

PRODUCTS = frozenset({"Gemm", "MatMul", "FusedMatMul"})
"""Operators that may also belong to the method; the engine extends the name of an operator that it fuses."""


def float_layers(path: Path, products: Collection[str] = ()) -> list[str]:
    """Return the names of layers that this machine's engine computes in float32 when it loads the graph at `path`.

    Args:
        products: names of nodes that are layers, to separate their products from those of a method.

    Raises UnsupportedError if the engine lacks an operator of the graph.
    """
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = engine().SessionOptions()
        options.log_severity_level = QUIET
        options.optimized_model_filepath = str(optimised)
        # Engines for ARM use kernels for int8 activations by default; those for x86 need this setting.
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
    """Raise UnsupportedError if more layers run in float32 than the modules state."""
    stated = sum(module.runs == "float32" and module.operators == "Conv" for module in modules)
    names = float_layers(path, {module.node for module in modules if module.runs == "int8"})
    if len(names) <= stated:
        return
    raise UnsupportedError(
        f"{len(names) - stated} layers would run in float32: this engine has no 8-bit kernel for them",
        where=", ".join(f"`{name}`" for name in names[:4]),
        hint="compile with another onnxruntime, or leave out `--quantize int8`",
    )
