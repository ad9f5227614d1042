"""One line on stderr per room, and the graph after it where `--dump` asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
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


class Rooms:
    """Collects what the rooms say; each method takes a room's result, tells of it and passes it on."""

    def __init__(self, say: Callable[[str], None], dump: Path | None = None) -> None:
        self.lines: list[str] = []
        self._say, self._dump, self._count = say, dump, 0
        if dump is not None and dump.exists() and not dump.is_dir():
            raise UsageError("the dump folder is a file", where=f"`{dump}`", hint="name a folder")

    def note(self, text: str) -> None:
        """A remark of a room, indented under its line."""
        self._say(f"            {text}")

    def line(self, room: str, text: str) -> None:
        """The line of a room: `plan        96 MB -> 21 MB`."""
        self.lines.append(f"{room:<11} {text}")
        self._say(self.lines[-1])

    def dump(self, room: str, **graphs: ir.Model) -> None:
        """Write `NN-room[-graph].onnx` and its weights beside, each room in files of its own."""
        self._count += 1
        if self._dump is None:
            return
        for name, model in graphs.items():
            folder = self._dump / f"{self._count:02}-{room}"
            folder.mkdir(parents=True, exist_ok=True)
            write_graphs(folder, {name: model})

    def loaded(self, model: ir.Model) -> ir.Model:
        """The model as it was read."""
        size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        name = model.graph.name or "model"
        self.line("load", f"{name}, opset {model.opset_imports['']}, {len(model.graph)} nodes, {format_size(size)}")
        self.dump("load", model=model)
        return model

    def normalised(self, model: ir.Model) -> ir.Model:
        """The model in normal form."""
        x = model.graph.inputs[0]
        self.line("normalise", f"{len(model.graph)} nodes, `{x.name}` {x.shape} -> `{model.graph.outputs[0].name}`")
        self.dump("normalise", model=model)
        return model

    def headed(self, head: Head | None) -> Head | None:
        """How the output is read."""
        self.line("head", str(head) if head else "none: the output is not read")
        return head

    def recognised(self, model: ir.Model, sites: list[NormSite]) -> list[NormSite]:
        """The sites to adapt."""
        inserted = sum(site.inserted for site in sites)
        added = f", {inserted} inserted where the export folded them" if inserted else ""
        self.line("norms", f"{len(sites)} sites{added}")
        self.dump("norms", model=model)
        return sites

    def quantized(self, model: ir.Model, quantized: Int8Modules) -> Int8Modules:
        """The layers as 8-bit modules; nothing to tell without `--quantize`."""
        if quantized.modules:
            self.line("quantize", quantized.summary)
            self.dump("quantize", model=model)
        return quantized

    def adapted(self, model: ir.Model, adaptation: Adaptation) -> None:
        """The rewritten norms."""
        count = len(adaptation.parameters)
        sites = f"{len(adaptation.sites)} sites with {adaptation.statistics.name} statistics"
        self.line("adapt", f"{sites}, {count} tensors train")
        self.dump("adapt", model=model)

    def computed(self, constants: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The arrays that the method computed while compiling, if any."""
        if constants:
            self.line("constants", f"{len(constants)} tensors computed by the method")
        return constants

    def differentiated(self, joint: Joint) -> Joint:
        """The joint graph."""
        forward = len(joint.model.graph) - len(joint.backward)
        self.line("autodiff", f"{forward} -> {len(joint.model.graph)} nodes, {len(joint.gradients)} gradients")
        self.dump("autodiff", joint=joint.model)
        return joint

    def planned(self, plan: Plan) -> Plan:
        """What the forward keeps."""
        ways = Counter(row.how for row in plan.decisions)
        shares = ", ".join(f"{count} {how}" for how, count in ways.items() if count)
        sizes = f"{format_size(plan.dense)} -> {format_size(plan.bytes)} at batch {plan.batch}"
        self.line("plan", f"{sizes}: {shares or 'nothing kept'}")
        return plan

    def lowered(self, graphs: dict[str, ir.Model]) -> None:
        """The graphs of the bundle."""
        forward = graphs["forward"]
        counts = ", ".join(f"{name} {len(model.graph)}" for name, model in graphs.items())
        self.line("lower", f"opset {forward.opset_imports['']}, IR {forward.ir_version}; nodes: {counts}")
        self.dump("lower", **graphs)

    def verified(self, differences: dict[str, float | None]) -> None:
        """The differences verification found."""
        found = [f"{name.replace('_', ' ')} {value:.0e}" for name, value in differences.items() if value is not None]
        self.line("verify", ", ".join(found) or "executed")

    def measured(self, found: Mapping[str, Any] | None, planned: Mapping[str, int]) -> None:
        """Peak bytes and seconds of a step as `measure` found them, None where it cannot, and what was planned."""
        if found is None:
            self.line("measure", "not measured: the counters are on Linux only")
            return
        most = planned.get("peak")
        told = f"planned {format_size(planned.get('usual', most or 0))}"
        told += f", at most {format_size(most)}" if most and "usual" in planned else ""
        expected = f" ({told})" if most else ""
        self.line("measure", f"peak {format_size(found['peak'])}{expected}, {found['seconds'] * 1e3:.1f} ms a step")
