"""The words of a compile, as frozen data: methods, targets, and the program of a bundle.  Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from importlib import import_module
from typing import Any

SOURCE_SET = "source"
"""The set of the compiled parameters, which never change; further sets are state `<set>.<parameter>`."""
TEACHER_SET = "teacher"
"""The set of parameters that follow the trained ones slowly (`ttac.passes.step_graphs.teacher_average`)."""
HEADS = ("classes", "binary", "dense", "detection", "ctc")
"""Predictions of an output: a class of each sample, yes-or-no answers, a class at each position."""
WITHOUT_PREDICTIONS = ("embedding", "regression")
"""Words of `--head` for outputs from which no method with a loss learns."""
BACKGROUNDS = ("first", "last", "none")
"""Words of `--background`: the class of a detector's background, or of a reader's blank."""
READINGS = (*HEADS, "multilabel", "tokens", *WITHOUT_PREDICTIONS)
"""Words of `--head`: the heads; `binary` for several answers; `dense` without padding; outputs without predictions."""

Settings = Mapping[str, Any]
"""The value of every option of a method, by name."""
Word = Mapping[str, Any]
"""One word of a program as in JSON; `INSIDE` are its keys with further words (`ttac.runtime.program`)."""
INSIDE = ("then", "otherwise", "do")
Reference = str | Callable[..., Any]
"""A function, or the text `package.module:function`, which is imported when a compile needs the function."""


def function_of(reference: Reference) -> Callable[..., Any]:
    """The function that `reference` names; raises ImportError or AttributeError if there is none."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def walk(words: Sequence[Word]) -> Iterator[Word]:
    """The words and the words inside them, in order."""
    for word in words:
        yield word
        for key in INSIDE:
            yield from walk(word.get(key, ()))


def map_words(words: Sequence[Word], change: Callable[[Word], Sequence[Word]]) -> list[Word]:
    """The words, each replaced by the words of `change`, which gets a word after the words inside it are replaced."""
    whole = ({**word, **{key: map_words(word[key], change) for key in INSIDE if key in word}} for word in words)
    return [new for word in whole for new in change(word)]


@dataclass(frozen=True)
class Option:
    """One hyperparameter of a method, set with `--set name=value`.

    `default` fixes the type (bool, int, float or str); `choices` or `low`/`high` (inclusive) bound the value.
    `per_site`: single norms may have another value, `--set name@PATTERN=value`.
    """

    name: str
    default: bool | int | float | str
    help: str
    _: KW_ONLY
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    per_site: bool = False


@dataclass(frozen=True)
class Facts:
    """Facts that a default may depend on: samples per step, classes, and the kinds of the norms that are adapted."""

    batch: int
    classes: int
    kinds: frozenset[str]


@dataclass(frozen=True)
class Statistics:
    """A policy: the statistics that an adapted batch norm normalises with.

    Attributes:
        name: word for manifest and reports.
        rewrite: reference to `(rewriter, site) -> state tensors`, which rewrites one batch norm in place
            (`ttac.passes.adapt.adapt_norms.Rewriter`); empty leaves the norm alone.
        needs: "batch" if a channel of the norm must have more than one value in a batch, "sample" if it must in each
            sample; empty if one value will do.
        neutral: settings with which the rewritten graph still computes the source model, for the verification; None
            verifies with the source statistics.
    """

    name: str
    rewrite: Reference = ""
    needs: str = ""
    neutral: Settings | None = None


SOURCE_STATISTICS = Statistics("source")
"""The statistics of the source model."""
BATCH_STATISTICS = Statistics("batch", "ttac.passes.adapt.adapt_norms:use_batch", needs="batch")
"""The statistics of the batch."""
BLEND_STATISTICS = Statistics("blend", "ttac.passes.adapt.adapt_norms:use_blend")
"""A weighted mean of source and batch statistics."""
AVERAGE_STATISTICS = Statistics("ema", "ttac.passes.adapt.running_averages:use_average")
"""A running average that begins at the source statistics."""
RENORM_STATISTICS = Statistics("renorm", "ttac.passes.adapt.renormalise:use_renorm", needs="batch")
"""The value of a running average that begins at the first batch, with the gradient of batch statistics."""


@dataclass(frozen=True)
class KeepPolicy:
    """A method keeps only a part of each trained layer's cached input.

    Attributes:
        option: name of the option that holds the keep ratio, from 0 to 1.
        codec: name of the codec in `ttac.passes.plan.codecs`, by the settings; empty if everything is kept.  If the
            codec draws the kept parts, a graph of the method moves the state `keep.numbers`.
        measured: whether a graph of the method sets the ratio of each layer in every step, as state `keep.ratios`;
            otherwise the ratio of the option holds for all layers.
    """

    option: str
    codec: Callable[[Settings], str]
    _: KW_ONLY
    measured: bool = False


@dataclass(frozen=True, kw_only=True)
class Method:
    """A test-time adaptation method as a value: the differences from running the source model.

    A hook is a `Reference`.  A hook with the argument `subject` gets a `ttac.passes.step_graphs.context.Subject`.

    Attributes:
        name: word of `--method`; title: one line for `ttac methods`; paper: arXiv number; needs: models and data that
            the method needs.
        statistics: the policy by the settings: one of this module, or a policy of the method.
        adapts: whether any norm is adapted; without, the bundle is the source model.
        trains: whether the scale and bias of the adapted sites become trained state: with a loss they get gradients,
            without one the method's graphs move them.
        choose_trained: `(subject) -> names of the sites that train`, where the user chose no sites; None trains all.
        loss: a loss of `ttac.passes.differentiate.losses` by its name, or a reference to a function
            `(op, scores, head) -> Loss`; empty if there is none.
        options: hyperparameters, in the order of `ttac methods NAME`.
        settle: the settings once the model is known, for defaults that depend on the model.
        pixels: defaults of options from the input values of a black and of a white pixel, each a text of numbers with
            commas; None if no option depends on pixels.
        check: `(subject) -> None`; raises UnsupportedError or UsageError for a model or samples that do not fit.
        refine: `(subject) -> state tensors`; rewrites the adapted model in place.  Tensors without `next` train, with
            the role "parameter", or "optimizer" if no prediction reads them; the forward moves the others.
        constants: `(subject) -> arrays by name`, computed once while compiling, for the method's graphs.
        keep: the part of each layer's cached input that is kept; None keeps all of it.
        graphs: name -> reference to `(context) -> MethodGraph`, for all graphs of the program in addition to `forward`
            and `backward`.
        program: the steps of one `adapter.step`, in the words of `ttac.runtime.program`, and these conveniences:
            `{"return": "logits"}` under any name that the model gives the logits, and `{"return": value}` for all
            outputs with a value in place of the logits; `{"run": "forward", "again": True}` without logits, reports and
            tracked state, which stay those of the first run; `{"run": "forward", "only": "outputs"}` for a later
            prediction in place of the first; "rows" and "repeat", which may name an option; "on", a
            value that the run reads in place of the model's input; "set", the parameters of a run: `{"set": NAME}`
            reads `NAME.<parameter>` for each trained parameter, and `NAME.<average>` for each running average of which
            the set has its own; `{"reset": roles}` for all state of a role; `"follows": True` in a "when", which
            happens with the guard wherever statistics may follow the batch, in a step that learns nothing too.  If a
            graph of the method moves a running average, the forward gives its next value and does not move it.
        predicts: the set of parameters that `predict` and `bake` take; empty for the trained parameters.
        running: whether predictions take the running averages of the norms, by the graph `predict`, which a program
            may run too; its outputs are `<output>.predict`.  With the guard, a batch nearer to the source takes the
            source's statistics, a batch out of its reach is held, and a failed round of the check drops the averages.
        variants: yes-or-no option -> fields of this class that are different where the option is on.
        oracle: the restatement that the method's tests compare with, as `file` or `file:name`.
    """

    name: str
    title: str
    paper: str
    needs: str
    statistics: Callable[[Settings], Statistics] = lambda settings: SOURCE_STATISTICS
    adapts: bool = True
    trains: bool = False
    choose_trained: Reference | None = None
    loss: Reference = ""
    options: tuple[Option, ...] = ()
    settle: Callable[[Settings, Facts], Settings] = lambda settings, facts: settings
    pixels: Callable[[str, str], Settings] | None = None
    check: Reference | None = None
    refine: Reference | None = None
    constants: Reference | None = None
    keep: KeepPolicy | None = None
    graphs: Mapping[str, Reference] = field(default_factory=dict)
    program: tuple[Word, ...] = ({"run": "forward"}, {"return": "logits"})
    predicts: str = ""
    running: bool = False
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    oracle: str = ""

    @property
    def by_gradients(self) -> bool:
        """Whether the trained state gets gradients."""
        return self.trains and bool(self.loss)

    def variant(self, settings: Settings) -> Method:
        """The method with the options that `settings` turns on."""
        chosen = [fields for option, fields in self.variants.items() if settings[option]]
        return replace(self, **{name: value for fields in chosen for name, value in fields.items()})


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device as data; rooms ask it for a capability, never for its name.

    Attributes:
        opset: highest ONNX opset its engine accepts; ir_version: the highest IR version.
        memory: bytes that a bundle may use in all (weights, state, residuals and workspace).
        batch: planned samples per step without `--batch`.
        kernels: engine kernels beyond standard ONNX that were measured faster there.
        threads: intra-op threads; 0 leaves it to the engine.
        providers: short names of execution providers, best first; empty for the CPU.
        denied: engine versions known to be bad, with the reason.
        int8_form: how 8-bit operators are written for it: "qdq".
        int8_activations: "uint8" or "int8", whichever its 8-bit kernels are fast with.
        int8_per_channel: whether they take one scale for each output channel of a kernel.
        int8_reduce_range: kernels in 7 bits, for processors that add two 8-bit products in 16 bits and overflow.
        int8_operators: operators with 8-bit kernels in the engine; all other operators stay in float32.
    """

    name: str
    title: str
    engine: str
    opset: int
    ir_version: int
    memory: int
    batch: int = 8
    threads: int = 0
    providers: tuple[str, ...] = ()
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

    @property
    def runs_on(self) -> str:
        """The processors that run a bundle, for people: `the CPU`, or `cuda, then the CPU`."""
        return ", then ".join([*(name for name in self.providers if name != "cpu"), "the CPU"])
