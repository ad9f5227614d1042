"""Models in 8 bits and in float, and how far their outputs are apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.support.saturating_engine import products_saturate
from ttac import targets
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.norm_sites import NormSite, find_norms
from ttac.passes.quantize.modules import Int8Modules, quantize

MODELS = Path(__file__).resolve().parents[1] / "models"
CPU = replace(targets.find("cpu"), int8_reduce_range=products_saturate())
"""Kernels of 8 bits where the engine adds their products without overflow, else of 7 bits."""
SETTINGS: dict[str, Any] = {"calibration": "minmax", "percentile": 99.99}


def samples(model: ir.Model, count: int = 64) -> np.ndarray:
    shape = [int(str(size)) for size in (model.graph.inputs[0].shape or [])[1:]]
    return np.random.default_rng(3).standard_normal((count, *shape)).astype(np.float32)


def taken(model: ir.Model, every: int) -> list[NormSite]:
    """Every n-th batch norm, none for 0."""
    sites = [site for site in find_norms(model).sites if site.kind == "batch"]
    return sites[::every] if every else []


def in_8_bits(path: Path, every: int, **choices: Any) -> tuple[ir.Model, ir.Model, Int8Modules]:
    """A model in normal form, the same in 8 bits, and its modules."""
    plain = normalise(load(path), simplifier=None)
    model = plain.clone()
    found = quantize(model, taken(model, every), samples(model), **{"target": CPU, "settings": SETTINGS, **choices})
    return plain, model, found


def written(model: ir.Model, folder: Path) -> Path:
    write_graphs(folder, {"graph": model})
    return folder / "graph.onnx"


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square difference over the deviation of the expected values."""
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())
