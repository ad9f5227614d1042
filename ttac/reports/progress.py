"""One line on stderr per room, and with `--dump` the graph after each room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ttac.errors import UsageError
from ttac.passes.graph.graph_files import write_graphs
from ttac.sizes import format_size

if TYPE_CHECKING:
    from ttac.passes.adapt.adapt_norms import Adaptation
    from ttac.passes.differentiate.heads import Head
    from ttac.passes.differentiate.joint import Joint
    from ttac.passes.norms.norm_sites import NormSite
    from ttac.passes.plan.decisions import Plan
    from ttac.passes.quantize.modules import Int8Modules


ROOMS = ("load", "normalise", "head", "norms", "adapt", "autodiff", "plan", "lower", "verify", "measure")
"""Rooms that write a line in every compile, in their order."""


def room_after(line: str) -> str:
    """Return the room that works after `line` was written; empty for a note and after the last room."""
    done = line.split(" ", 1)[0]
    return ROOMS[ROOMS.index(done) + 1] if done in ROOMS[:-1] else ""


class RoomLog:
    """The lines of the rooms; every room has a method, which takes the room's result and writes its line."""

    def __init__(self, say: Callable[[str], None], dump: Path | None = None) -> None:
        self.lines: list[str] = []
        self._say, self._dump, self._count = say, dump, 0
        if dump is not None and dump.exists() and not dump.is_dir():
            raise UsageError("the dump folder is a file", where=f"`{dump}`", hint="name a folder")

    def note(self, text: str) -> None:
        """Write a remark of a room, indented under its line."""
        self._say(f"            {text}")

    def line(self, room: str, text: str) -> None:
        """Write the line of a room: `plan        96 MB -> 21 MB`."""
        self.lines.append(f"{room:<11} {text}")
        self._say(self.lines[-1])

    def dump(self, room: str, **graphs: ir.Model) -> None:
        """Write graphs and weights to the folder `NN-room`, for `--dump`."""
        self._count += 1
        if self._dump is None:
            return
        for name, model in graphs.items():
            folder = self._dump / f"{self._count:02}-{room}"
            folder.mkdir(parents=True, exist_ok=True)
            write_graphs(folder, {name: model})

    def load(self, model: ir.Model) -> None:
        """Write name, opset, nodes and bytes of the loaded model."""
        tensors = [v.const_value for v in model.graph.initializers.values()]
        constants = [node.attributes for node in model.graph if node.op_type == "Constant"]  # Paddle's weights
        tensors += [attributes["value"].as_tensor() for attributes in constants if "value" in attributes]
        size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        name = model.graph.name or "model"
        self.line("load", f"{name}, opset {model.opset_imports['']}, {len(model.graph)} nodes, {format_size(size)}")
        self.dump("load", model=model)

    def normalise(self, model: ir.Model) -> None:
        """Write nodes, input and output of the normal form."""
        x = model.graph.inputs[0]
        self.line("normalise", f"{len(model.graph)} nodes, `{x.name}` {x.shape} -> `{model.graph.outputs[0].name}`")
        self.dump("normalise", model=model)

    def head(self, head: Head | None) -> None:
        """Write the reading of the output."""
        self.line("head", str(head) if head else "none: the output is not read")

    def norms(self, model: ir.Model, sites: Sequence[NormSite]) -> None:
        """Write the number of sites to adapt."""
        inserted = sum(site.inserted for site in sites)
        added = f", {inserted} inserted where the export folded them" if inserted else ""
        self.line("norms", f"{len(sites)} sites{added}")
        self.dump("norms", model=model)

    def quantize(self, model: ir.Model, int8: Int8Modules) -> None:
        """Write the number of 8-bit modules, if there are any."""
        if int8.modules:
            self.line("quantize", int8.summary)
            self.dump("quantize", model=model)

    def adapt(self, model: ir.Model, adaptation: Adaptation) -> None:
        """Write the sites with their statistics, and the number of trained tensors."""
        count = len(adaptation.parameters)
        sites = f"{len(adaptation.sites)} sites with {adaptation.statistics.name} statistics"
        self.line("adapt", f"{sites}, {count} tensors train")
        self.dump("adapt", model=model)

    def constants(self, constants: Mapping[str, np.ndarray]) -> None:
        """Write the number of arrays that the method computed, if there are any."""
        if constants:
            self.line("constants", f"{len(constants)} tensors computed by the method")

    def autodiff(self, joint: Joint) -> None:
        """Write nodes and gradients of the joint graph."""
        forward = len(joint.model.graph) - len(joint.backward)
        self.line("autodiff", f"{forward} -> {len(joint.model.graph)} nodes, {len(joint.gradients)} gradients")
        self.dump("autodiff", joint=joint.model)

    def plan(self, plan: Plan) -> None:
        """Write the bytes of the residuals, dense and as planned, and the number of residuals by form."""
        forms = Counter(row.how for row in plan.decisions)
        counts = ", ".join(f"{count} {form}" for form, count in forms.items() if count)
        sizes = f"{format_size(plan.dense)} -> {format_size(plan.bytes)} at batch {plan.batch}"
        self.line("plan", f"{sizes}: {counts or 'nothing kept'}")

    def lower(self, graphs: Mapping[str, ir.Model]) -> None:
        """Write opset, IR version and nodes of the bundle's graphs."""
        forward = graphs["forward"]
        counts = ", ".join(f"{name} {len(model.graph)}" for name, model in graphs.items())
        self.line("lower", f"opset {forward.opset_imports['']}, IR {forward.ir_version}; nodes: {counts}")
        self.dump("lower", **graphs)

    def verify(self, differences: Mapping[str, float | None]) -> None:
        """Write the differences of the verification."""
        figures = [f"{name.replace('_', ' ')} {value:.0e}" for name, value in differences.items() if value is not None]
        self.line("verify", ", ".join(figures) or "executed")

    def measure(self, figures: Mapping[str, Any] | None, planned: Mapping[str, int]) -> None:
        """Write peak bytes and seconds of a step, beside the planned bytes; `figures` is None without counters."""
        if figures is None:
            self.line("measure", "not measured: the counters are on Linux only")
            return
        most = planned.get("peak")
        expected = f"planned {format_size(planned.get('usual', most or 0))}"
        expected += f", at most {format_size(most)}" if most and "usual" in planned else ""
        shown = f" ({expected})" if most else ""
        self.line("measure", f"peak {format_size(figures['peak'])}{shown}, {figures['seconds'] * 1e3:.1f} ms a step")
