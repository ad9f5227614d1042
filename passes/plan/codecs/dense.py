"""Codec `dense`: the value itself, unchanged; every planner starts from this codec."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.plan.codecs.codec import Codec, Encoded, KeepRatio, elements_of


def encode(op: Builder, x: ir.Value, ratio: KeepRatio | None) -> Encoded:
    """Return x."""
    return (x,)


def decode(op: Builder, encoded: Encoded, like: ir.Value) -> ir.Value:
    """Return x."""
    return encoded[0]


CODEC = Codec(name="dense", encode=encode, decode=decode, bytes=lambda x, _: 4 * elements_of(x), error="none")
