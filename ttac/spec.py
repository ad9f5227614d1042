"""The words of a compile, as frozen data: methods, targets, and the program a bundle runs.  Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

HEADS = ("classes", "binary", "dense")
"""What an output may predict: a class of each sample, yes-or-no answers, a class at each position."""


@dataclass(frozen=True)
class Option:
    """One hyperparameter of a method, set with `--set name=value`.

    `default` fixes the type (bool, int, float or str); `choices` or `low`/`high` (inclusive) bound the value.
    `per_site`: norms may have values of their own, `--set name@PATTERN=value`.
    """

    name: str
    default: bool | int | float | str
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    per_site: bool = False


@dataclass(frozen=True)
class Facts:
    """What a default may depend on: samples per step, classes, and the kinds of the norms that are adapted."""

    batch: int
    classes: int
    kinds: frozenset[str]


@dataclass(frozen=True)
class Method:
    """A test-time adaptation method as a value: what differs from running the source model.

    Attributes:
        statistics: which statistics an adapted batch norm normalises with: "source", "batch", "blend" (with a prior of
            `prior` pseudo-samples), "ema" or "sample" (each sample's own, blended with the source's); a function of
            the settings where an option decides.
        adapts: whether any norm is adapted; without, the bundle is the plain model.
        trains: whether the scale and bias of the adapted sites get gradients.
        loss: name of the loss in `ttac.passes.differentiate.losses`, empty if there is none.
        refine: what happens to the predictions of a batch, by its name in `laplacian`, empty for nothing.
        drops: codec (`plan.codecs`) by which each trained layer keeps a share of its cached input only, by the
            settings; empty for methods that keep all of it.
        options: hyperparameters, in the order `ttac methods NAME` lists them.
        settle: the settings once the model is known, for defaults that depend on it.
        graphs: graphs of the program besides `forward` and `backward`, by their names in `step_graphs.table`.
        program: the steps of one `adapter.step`, in the words of `ttac.runtime.program`, and three more conveniences:
            `{"return": "logits"}` whatever the model calls them; `{"run": "forward", "again": True}` without logits,
            reports and tracked state, which stay those of the first run, where "rows" may name a setting, and "on" a
            value that the run takes for the model's input; `{"reset": roles}` for all state of a role.
        variants: what else is different where a yes-or-no option is on: the option -> fields of this class.
    """

    name: str
    title: str
    paper: str
    needs: str
    statistics: Callable[[Mapping[str, Any]], str] = lambda settings: "source"
    adapts: bool = True
    trains: bool = False
    loss: str = ""
    refine: str = ""
    drops: Callable[[Mapping[str, Any]], str] = lambda settings: ""
    options: tuple[Option, ...] = ()
    settle: Callable[[Mapping[str, Any], Facts], Mapping[str, Any]] = lambda settings, facts: settings
    graphs: tuple[str, ...] = ()
    program: tuple[Mapping[str, Any], ...] = ({"run": "forward"}, {"return": "logits"})
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def variant(self, settings: Mapping[str, Any]) -> Method:
        """The method with the options that `settings` turns on."""
        chosen = [fields for option, fields in self.variants.items() if settings[option]]
        return replace(self, **{name: value for fields in chosen for name, value in fields.items()})


@dataclass(frozen=True)
class Target:
    """A device as data; rooms ask it for a capability, never for its name.

    Attributes:
        opset: highest ONNX opset its engine accepts; ir_version: the highest IR version.
        memory: bytes that a bundle may use in all (weights, state, residuals and workspace).
        batch: samples per step planned for when `--batch` is not given.
        kernels: engine kernels beyond standard ONNX that were measured faster there.
        threads: intra-op threads; 0 leaves it to the engine.
        denied: engine versions known to be bad, with the reason.
        int8_form: how 8-bit operators are written for it: "qdq".
        int8_activations: "uint8" or "int8", whichever its 8-bit kernels are fast with.
        int8_per_channel: whether they take one scale for each output channel of a kernel.
        int8_reduce_range: kernels in 7 bits, for processors that add two 8-bit products in 16 bits and overflow.
        int8_operators: what the engine has 8-bit kernels for; nothing else of a graph leaves float32.
    """

    name: str
    title: str
    engine: str
    opset: int
    ir_version: int
    memory: int
    batch: int = 8
    threads: int = 0
    kernels: tuple[str, ...] = ()
    python: str = ""
    engine_versions: str = ""
    denied: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    int8_form: str = "qdq"
    int8_activations: str = "uint8"
    int8_per_channel: bool = True
    int8_reduce_range: bool = False
    int8_operators: tuple[str, ...] = ()
