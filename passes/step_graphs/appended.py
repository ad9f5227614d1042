"""A graph of a step appended to the graph whose values it reads: one call of the engine for both."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from ttac.passes.step_graphs.context import MethodGraph


def append(host: ir.Model, guest: MethodGraph) -> MethodGraph:
    """Move the nodes of `guest` to the end of `host`, in place; the guest's state and stats in the host.

    An input of the guest that the host reads or makes becomes that value.  Other inputs, and all outputs, become
    inputs and outputs of the host.

    Raises ValueError for a value of the guest that has the name of another value of the host.
    """
    graph, source = host.graph, guest.model.graph
    known = ir.convenience.create_value_mapping(graph)
    inputs, outputs, nodes = list(source.inputs), list(source.outputs), list(source)
    constants = dict(source.initializers)
    source.inputs.clear()
    source.outputs.clear()
    source.initializers.clear()
    source.remove(nodes)
    taken = {str(value.name): known[str(value.name)] for value in inputs if value.name in known}
    for value in inputs:
        if value.name in taken:
            ir.convenience.replace_all_uses_with(value, taken[str(value.name)])
        else:
            graph.inputs.append(value)
    for name, value in constants.items():
        # Constants have names after their contents.
        if name in graph.initializers:
            ir.convenience.replace_all_uses_with(value, graph.initializers[name])
        else:
            graph.register_initializer(value)
    if twice := {str(value.name) for node in nodes for value in node.outputs} & known.keys():
        raise ValueError(f"both graphs make `{min(twice)}`")
    for node in nodes:
        node.name = node.outputs[0].name  # both graphs may have a node `add`
    graph.extend(nodes)
    graph.outputs.extend(outputs)
    state = tuple(replace(tensor, value=taken.get(str(tensor.value.name), tensor.value)) for tensor in guest.state)
    return replace(guest, model=host, state=state)
