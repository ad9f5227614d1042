"""Numbers of freshly expanded composites and codecs: a chain of a graph is recognised by comparison with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.expand import expand_all
from ttac.passes.kernels.linked_graphs import LinkedGraphs
from ttac.passes.kernels.terms import Terms


def expected(terms: Terms, operands: Mapping[str, ir.Value], build: Callable[..., Sequence[ir.Value]]) -> list[int]:
    """The numbers of the outputs that `build(op, *operands)` makes; the operands are atoms, under their names."""
    inputs = [ir.Value(name=name, type=value.type, shape=value.shape) for name, value in operands.items()]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": 18, "ttac": 1}, name="expected")
    graph.outputs.extend(build(Builder(graph, "expected", 18), *inputs))
    model = expand_all(ir.Model(graph, ir_version=8))
    atoms = {value: terms.term(str(value.name)) for value in model.graph.inputs}
    linked = LinkedGraphs({"expected": model})
    return [terms.of(linked, value, atoms) for value in model.graph.outputs]
