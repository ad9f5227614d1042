"""The table of forms in a manifest: further spellings of the graphs, which fit certain engines only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttac.runtime.graph_check import BLOCKED_DOMAINS, KERNEL_DOMAIN
from ttac.runtime.json_values import a_count, a_file, a_list, a_name, an_object, check_distinct, refuse
from ttac.runtime.reorder import ORDERS

PORTABLE = "portable"
"""Name of the form that runs everywhere: the graphs of the manifest's `graphs`."""
BYTES_BLOCK = 1
"""Block of a form whose channels lie in no blocks: 8-bit layers with norms that read bytes."""
AGREED, AGREED_BYTES = 1e-4, 0.1
"""Largest difference of the outputs of two forms, relative to the largest value of an output; with norms of bytes, a
rounding error turns into a whole step of 8 bits wherever a number lies between two of them."""


@dataclass(frozen=True)
class WeightSpec:
    """A weight that a form needs in another layout; the arguments of `ttac.runtime.reorder.reordered`."""

    of: str
    order: str
    taps: tuple[tuple[int, ...], ...]
    groups: int


@dataclass(frozen=True)
class FormSpec:
    """One form of the graphs.

    Attributes:
        name: unique in the manifest.
        block: channels of a block in the engine's layout.
        probe: file of the graph that tells whether an engine runs this form.
        kernels: version of the operators that the graphs take from `ttac-kernels`; 0 for none.
        graphs: graph -> file; a graph that is absent here has one spelling for all forms.
        weights: graph input -> its weight.
    """

    name: str
    block: int
    probe: str
    graphs: Mapping[str, str]
    weights: Mapping[str, WeightSpec]
    kernels: int = 0

    @property
    def agreed(self) -> float:
        """Largest difference of the outputs from those of the portable graphs, relative to the largest value."""
        return AGREED_BYTES if self.block == BYTES_BLOCK else AGREED

    @property
    def domains(self) -> tuple[str, ...]:
        """Operator domains of the graphs beyond those of portable graphs."""
        return (*BLOCKED_DOMAINS, *([KERNEL_DOMAIN] if self.kernels else []))


def parse_forms(value: Any, files: Mapping[str, str], graphs: Mapping[str, Any]) -> tuple[FormSpec, ...]:
    """Return the records of the manifest's `forms`; raises VerificationError for an entry that does not fit."""
    forms = tuple(_form(entry, f"forms[{i}]", files, graphs) for i, entry in enumerate(a_list(value, "forms")))
    check_distinct((PORTABLE, *(form.name for form in forms)), "forms")
    return forms


def _form(value: Any, where: str, files: Mapping[str, str], graphs: Mapping[str, Any]) -> FormSpec:
    entry = an_object(value, where, only=("name", "block", "probe", "graphs", "weights"), also=("kernels",))
    spelled = an_object(entry["graphs"], f"{where}.graphs")
    for name in spelled:
        if name not in graphs:
            refuse(f"{where}.graphs", f"has `{name}`, which `graphs` lacks")
    weights = an_object(entry["weights"], f"{where}.weights")
    block = a_count(entry["block"], f"{where}.block", low=1)
    return FormSpec(
        name=a_name(entry["name"], f"{where}.name"),
        block=block,
        probe=_graph_file(entry["probe"], f"{where}.probe", files),
        graphs={name: _graph_file(file, f"{where}.graphs[{name!r}]", files) for name, file in spelled.items()},
        weights={name: _weight(entry, f"{where}.weights[{name!r}]") for name, entry in weights.items()},
        kernels=a_count(entry.get("kernels", 0), f"{where}.kernels", low=0),
    )


def _graph_file(value: Any, where: str, files: Mapping[str, str]) -> str:
    file = a_file(value, where)
    if file not in files or not file.endswith(".onnx"):
        refuse(where, f"names `{file}`, which is not an `.onnx` file in `files`")
    return file


def _weight(value: Any, where: str) -> WeightSpec:
    entry = an_object(value, where, only=("of", "order"), also=("taps", "groups"))
    if entry["order"] not in ORDERS:
        refuse(f"{where}.order", f"is {entry['order']!r}")
    taps = tuple(
        tuple(a_count(tap, f"{where}.taps[{axis}]", low=0) for tap in a_list(line, f"{where}.taps[{axis}]"))
        for axis, line in enumerate(a_list(entry.get("taps", []), f"{where}.taps"))
    )
    if len(taps) not in (0, 2):
        refuse(f"{where}.taps", f"has {len(taps)} axes, not 2")
    return WeightSpec(
        a_name(entry["of"], f"{where}.of"), entry["order"], taps, a_count(entry.get("groups", 0), where, low=0)
    )
