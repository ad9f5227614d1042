"""The options of one compile: declared once and checked once, before any model is opened.

Python, the command line and TOML files give the same mapping of names and values to `CompileOptions.from_mapping`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttac import methods, targets
from ttac.errors import UnsupportedError, UsageError
from ttac.method_fit import methods_that_train
from ttac.runtime.bundle import check_replaceable
from ttac.samples.pixels import black_and_white, resolve_pixels
from ttac.settings import resolve, split_assignments
from ttac.sizes import parse_size, sample_shape
from ttac.spec import BACKGROUNDS, READINGS, Method, Target
from ttac.suggest import did_you_mean

if TYPE_CHECKING:
    import numpy as np

ALL = "all"
"""The selector for all norms and all other weights."""
NORMS = ("auto", "keep", "insert")
BACKGROUND = "Class of a detector's background, or a reader's blank.  [default: the samples decide]"
TRAINING_FILES = ("training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint")
"""Files of onnxruntime-training's API."""

Parse = Callable[[Any, str], Any]
"""Value and its place in a message -> typed value.  Text and typed values are accepted; raises UsageError."""


def one_of(*choices: str) -> Parse:
    """Parser of a value that is one of a few words."""

    def parse(value: Any, where: str) -> Any:
        if value not in choices:
            raise UsageError(f"`{value}` is no choice", where=where, hint=did_you_mean(str(value), choices))
        return value

    return parse


def whole_number(low: int = 1) -> Parse:
    """Parser of a whole number that is at least `low`."""

    def parse(value: Any, where: str) -> Any:
        if isinstance(value, bool) or not str(value).isdecimal() or int(value) < low:
            raise UsageError(f"`{value}` does not fit", where=where, hint=f"give a whole number, at least {low}")
        return int(value)

    return parse


def size_in_bytes(value: Any, where: str) -> int:
    """Parser of a size in bytes, such as `64MiB`."""
    return parse_size(str(value), where)


def name_text(value: Any, where: str) -> str:
    """Parser of a name."""
    if not isinstance(value, str) or not value:
        raise UsageError(f"`{value}` is no name", where=where, hint="give a text that is not empty")
    return value


def path_of(value: Any, where: str) -> Path:
    """Parser of a path."""
    if not isinstance(value, (str, Path)):
        raise UsageError(f"`{value}` is no path", where=where, hint="give a text or a `pathlib.Path`")
    return Path(value)


def truth(value: Any, where: str) -> bool:
    """Parser of yes or no."""
    if not isinstance(value, bool):
        raise UsageError(f"`{value}` is neither true nor false", where=where, hint="give a truth value")
    return value


def sample_source(value: Any, where: str) -> Any:
    """Parser of calibration samples: an array, arrays by the names of inputs, or the path of a file or folder."""
    return value if hasattr(value, "dtype") or isinstance(value, Mapping) else path_of(value, where)


def name_table(value: Any, where: str) -> dict[str, Any]:
    """Parser of a table of settings: a mapping, or texts `name=value`."""
    if isinstance(value, Mapping):
        return dict(value)
    return split_assignments([value] if isinstance(value, str) else value)


def pixel_meaning(value: Any, where: str) -> dict[str, Any] | None:
    """Parser of the pixels' meaning (`ttac.samples.pixels.resolve_pixels`)."""
    return resolve_pixels(value)


@dataclass(frozen=True, kw_only=True)
class OptionRule:
    """One option as users write it.

    Attributes:
        parse: checks and converts a value; a typed value passes unchanged.
        metavar, help: of the option on the command line.
        default: where the option is left out; None where the model, the method or the target decide.
    """

    parse: Parse
    metavar: str
    help: str
    default: Any = None


def _rule(parse: Parse, metavar: str, help: str, default: Any = None) -> dict[str, OptionRule]:
    return {"rule": OptionRule(parse=parse, metavar=metavar, help=help, default=default)}


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """The resolved options of one compile: names are looked up, values are typed and within their bounds.

    Attributes:
        path: the ONNX file.
        method: the method, with the variants that `settings` turn on.
        target: the device, by its name (`ttac targets`) or a `.toml` file.
        output: folder of the bundle; `MODEL-METHOD-TARGET.ttac` in the working directory by default.
        batch: samples of one step that the bundle is planned for; the target's number by default.  With the setting
            `window`, the window's size, and `step` is the number that the user gave.
        calibration: a few hundred unlabelled source samples: float32 array [n, ...], `.npz`, `.npy` or a folder of
            images; for several inputs, arrays by their names, also in an `.npz`; None without samples.
        norms: "auto" inserts norms only into a file without any, "insert" after every Conv with a bias, "keep" never.
        train: the sites to adapt: "norms" for all, "all" for all norms and all other weights, or comma-separated
            selectors (`ttac.passes.norms.selectors`).
        quantize: "int8" runs the frozen layers in 8 bits and needs `calibration`; None runs all layers in float32.
        memory_budget: bytes of working memory of one step beyond the loaded bundle (Python and the command line also
            take a size such as "64MiB"); None for the target's memory.
        settings: value of every hyperparameter of the method (`ttac methods NAME`); `stated` are those of the user.
        dump: folder that gets the graph after each room; None writes none.
        emit: "ort-training" for the files of onnxruntime-training's API too, in the folder `emitted`; None for none.
        dry_run: plan and report without writing `output`; the returned Bundle has no folder.
        input: name of the input that methods distort, for a graph with several.
        logits: name of the output that the loss reads, or several, `a=1,b=0.5`; the bundle returns all outputs.
        hold: name -> value of inputs that keep one value: a number, an array, or the path of an `.npy` file.
        batch_axis: name of an input -> its axis with the samples, or "none"; the file's names of sizes decide the rest.
        shape: of one sample, for a file that leaves it open; for several inputs, by their names.
        max_shape: the largest shape of one sample; sizes that the file leaves open stay open, and it takes the place of
            `shape`.
        head: reading of the output, one of `ttac.spec.READINGS`; "auto" reads it from the shape and the last operators.
        background: class of a detector's background or a reader's blank, of `BACKGROUNDS`; "auto" asks the samples.
        axis: axis of the classes in the output, where the file does not tell it.
        pixels: meaning of bytes, and so of images: "imagenet", or a mapping (`ttac.samples.pixels`), for the manifest.
    """

    path: Path
    method: Method = field(metadata=_rule(name_text, "M", "See `ttac methods`.", methods.DEFAULT))
    target: Target = field(metadata=_rule(name_text, "T", "See `ttac targets`; or your `.toml` file.", "cpu"))
    output: Path = field(metadata=_rule(path_of, "DIR", "The bundle's folder.  [default: MODEL-M-T.ttac]"))
    batch: int = field(
        metadata=_rule(whole_number(), "N", "Samples per step to plan for.  [default: the target's number]")
    )
    calibration: Path | np.ndarray | Mapping[str, np.ndarray] | None = field(
        metadata=_rule(sample_source, "PATH", "Unlabelled source samples: .npz, .npy or a folder of images.")
    )
    norms: str = field(
        metadata=_rule(
            one_of(*NORMS),
            "|".join(NORMS),
            "Insert norms where an exporter folded them: into a file without any (auto), never, or after every Conv.",
            "auto",
        )
    )
    head: str = field(
        metadata=_rule(
            one_of("auto", *READINGS),
            "|".join(("auto", *READINGS)),
            "The output predicts a class a sample, yes or no, a class a pixel, boxes, or text; auto reads the file.",
            "auto",
        )
    )
    axis: int | None = field(
        metadata=_rule(whole_number(), "AXIS", "Axis of the classes in the output, counted from 0.")
    )
    background: str = field(metadata=_rule(one_of("auto", *BACKGROUNDS), "|".join(BACKGROUNDS), BACKGROUND, "auto"))
    input: str | None = field(metadata=_rule(name_text, "NAME", "The input that methods distort; all are taken."))
    logits: str | None = field(
        metadata=_rule(name_text, "NAME", "The output that the loss reads, or several, `A=1,B=0.5`; all are returned.")
    )
    batch_axis: Mapping[str, Any] = field(
        metadata=_rule(name_table, "KEY=VALUE", "Axis of an input with the samples, or `none`; several times.", {})
    )
    shape: tuple[int, ...] | dict[str, tuple[int, ...]] | None = field(
        metadata=_rule(sample_shape, "CxHxW", "Shape of one sample, where the file leaves it open; or NAME=CxHxW,...")
    )
    max_shape: tuple[int, ...] | dict[str, tuple[int, ...]] | None = field(
        metadata=_rule(sample_shape, "CxHxW", "Largest shape of one sample: open sizes stay open up to it.")
    )
    pixels: Mapping[str, Any] | None = field(
        metadata=_rule(
            pixel_meaning,
            "KEY=VALUE",
            "How images become the model's input: `imagenet`, or `mean=`, `std=`, `range=`, `layout=`; several times.",
        )
    )
    hold: Mapping[str, Any] = field(
        metadata=_rule(name_table, "KEY=VALUE", "Hold another input at a number or an `.npy` array; several times.", {})
    )
    train: str = field(
        metadata=_rule(
            name_text,
            "norms|all|SELECTOR",
            "Norms that adapt: names, `first:4`, `last:30%`, `every:3`, `auto:6@20%`.",
            "norms",
        )
    )
    quantize: str | None = field(metadata=_rule(one_of("int8"), "int8", "Run the frozen layers in 8 bits."))
    memory_budget: int | None = field(
        metadata=_rule(size_in_bytes, "SIZE", "Refuse a bundle whose step needs more memory, as `64MiB`.")
    )
    settings: Mapping[str, Any] = field(
        metadata=_rule(name_table, "KEY=VALUE", "A hyperparameter; see `ttac methods M`.", {})
    )
    dump: Path | None = field(metadata=_rule(path_of, "DIR", "Write the graph after each room to this folder."))
    emit: str | None = field(
        metadata=_rule(one_of("ort-training"), "ort-training", "Also write the files of onnxruntime-training's API.")
    )
    dry_run: bool = field(metadata=_rule(truth, "", "Plan and report, write nothing.", False))
    step: int = 1
    stated: frozenset[str] = frozenset()

    @classmethod
    def from_mapping(cls, path: str | Path, choices: Mapping[str, Any]) -> CompileOptions:
        """The options of compiling the file `path` with `choices`: names and values; None leaves an option out.

        Raises:
            UsageError: unknown option, method, target or setting, a value of the wrong type or out of bounds, or an
                output that is something else already.
            UnsupportedError: options that contradict each other.
        """
        given = parsed(choices)
        values = {name: given.get(name, rule.default) for name, rule in RULES.items()}
        method, target = methods.find(values["method"]), targets.find(values["target"])
        _refuse_contradiction(method, values["train"], values["quantize"])
        settings = resolve(method, _with_pixels(method, values["settings"], values["pixels"]), values["quantize"])
        if values["max_shape"] is not None:
            values["shape"] = _largest_shape(values, method.variant(settings), settings)
        values["stated"], path = frozenset(values["settings"]), Path(path)
        output = values["output"] or Path(f"{path.stem}-{method.name}-{target.name}.ttac")
        if not values["dry_run"]:
            check_replaceable(output)
            _check_emitted(output, values["emit"])
        values |= {"method": method.variant(settings), "target": target, "settings": settings, "output": output}
        return cls(**{**values, "path": path, **_batch(values, target, int(settings.get("window", 0)))})


def _batch(values: Mapping[str, Any], target: Target, window: int) -> dict[str, int]:
    """The samples to adapt to, and the most samples of a step, which a window may exceed.

    Raises UsageError for options that a window excludes, or for a step larger than the window.
    """
    batch = values["batch"] or (min(target.batch, window) if window else target.batch)
    if not window:
        return {"batch": batch, "step": batch}
    where, size = f"`--set window={window}`", f"a step takes {batch} samples"
    if batch > window:
        raise UsageError(
            f"{size}, and the window holds {window}", where=where, hint="enlarge the window, or leave it out"
        )
    excluded = {"max-shape": values["max_shape"], "train all": values["train"] == ALL, "quantize": values["quantize"]}
    for name in (name for name, value in excluded.items() if value):
        raise UsageError(f"a window excludes `--{name}`", where=where, hint="leave one of the two out")
    return {"batch": window, "step": batch}


def _check_emitted(output: Path, emit: str | None) -> None:
    """Raise UsageError if the folder of the emitted files is something else already."""
    folder = emitted_folder(output, emit)
    if folder is None or not (folder.exists() or folder.is_symlink()):
        return
    own = folder.is_dir() and not folder.is_symlink()
    if not own or not {path.name for path in folder.iterdir()} <= set(TRAINING_FILES):
        hint = "choose another `-o`, or remove the folder"
        raise UsageError("there is something else where the emitted files should go", where=f"`{folder}`", hint=hint)


def emitted_folder(output: Path, emit: str | None) -> Path | None:
    """Folder of the emitted files, beside the bundle `output`; None without `emit`."""
    return None if emit is None else output.with_name(f"{output.name.removesuffix('.ttac')}.{emit}")


RULES: dict[str, OptionRule] = {
    entry.name: entry.metadata["rule"] for entry in fields(CompileOptions) if entry.metadata
}
"""The options of `ttac.compile` by name."""


def parsed(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The options that `choices` state, typed; an option that is None is left out.

    Raises UsageError for an unknown name, a value of the wrong type or out of bounds.
    """
    for name in choices:
        if name not in RULES:
            raise UsageError(f"a compile has no option `{name}`", hint=did_you_mean(name, RULES))
    stated = {name: value for name, value in choices.items() if value is not None}
    return {name: RULES[name].parse(value, f"`{spelling(name)}`") for name, value in stated.items()}


def spelling(name: str) -> str:
    """The option `name` as the command line spells it."""
    return "--set" if name == "settings" else f"--{name.replace('_', '-')}"


def _with_pixels(method: Method, settings: Mapping[str, Any], pixels: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The settings, with defaults that the method derives from the stated pixels."""
    if pixels is None or method.pixels is None:
        return settings
    return {**method.pixels(*black_and_white(pixels)), **settings}


def _largest_shape(values: Mapping[str, Any], method: Method, settings: Mapping[str, Any]) -> Any:
    """The shape to plan for; raises UsageError for options that fix a size, or need one."""
    from ttac.passes.plan.codecs import CODECS

    if (codec := method.keep.codec(settings) if method.keep else "") and CODECS[codec].one_size:
        problem = f"`{method.name}` keeps parts of values in codec `{codec}`, which is for one size"
        hint = "fix the size with `--shape`, or take another method"
        raise UsageError(problem, where="`--max-shape`", hint=hint)
    for name in ("shape", "quantize"):
        if values[name] is not None:
            raise UsageError(f"`--{name}` needs a fixed size", where="`--max-shape`", hint="leave one of the two out")
    return values["max_shape"]


def untrainable(where: str) -> UnsupportedError:
    """The error for weights that are to be trained and to be 8-bit."""
    hint = "train the norms: leave out `--train all`"
    return UnsupportedError("kernels of 8 bits cannot be trained", where=where, hint=hint)


def _refuse_contradiction(method: Method, train: str, quantize: str | None) -> None:
    """Raise UnsupportedError for options that exclude each other."""
    if train == ALL and not method.by_gradients:
        hint = f"leave it out, or choose a method that trains: {methods_that_train()}"
        raise UnsupportedError(f"`{method.name}` trains no weights", where="`--train all`", hint=hint)
    if quantize and train == ALL:
        raise untrainable("`--train all --quantize int8`")
