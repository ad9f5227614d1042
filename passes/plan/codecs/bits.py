"""Codec `bits`: a mask with eight elements to a byte; the planners pick it for large masks under a budget."""

from __future__ import annotations

import onnx_ir as ir

import ttac.passes.operators.bitmask  # noqa: F401  (registers PackBits and UnpackBits)
from ttac.passes.graph.builder import Builder
from ttac.passes.plan.codecs.codec import Codec, Encoded, KeepRatio, elements_of, open_shape


def encode(op: Builder, x: ir.Value, ratio: KeepRatio | None) -> Encoded:
    """Return the packed mask, uint8 [N, bytes of a sample]."""
    return (op.PackBits(x),)


def decode(op: Builder, encoded: Encoded, like: ir.Value) -> ir.Value:
    """Return the mask in the shape of `like`."""
    return op.UnpackBits(encoded[0], shape=open_shape(like))


CODEC = Codec(name="bits", encode=encode, decode=decode, bytes=lambda x, _: elements_of(x) / 8, error="none")
