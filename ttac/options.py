"""What the user asked for, resolved: every name looked up, every value typed, before any model is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ttac import methods, targets
from ttac.errors import UnsupportedError, UsageError
from ttac.runtime.bundle import check_replaceable
from ttac.samples.pixels import black_and_white, resolve_pixels
from ttac.settings import resolve
from ttac.sizes import parse_size
from ttac.spec import HEADS, Facts, Method, Target

ALL = "all"
"""The selector for every norm, and all other weights besides."""
NORMS = ("auto", "keep", "insert")


@dataclass(frozen=True)
class Request:
    """One compile.

    Attributes:
        path: the model file; output: the bundle's folder.
        settings: every option of `method` with its value.
        batch: samples per step that the bundle is planned for.
        calibration: unlabelled source samples, as an array, a file or a folder; None if there are none.
        norms: "auto", "keep" or "insert"; train: which sites are adapted ("norms", "all" or name patterns).
        quantize: "int8" where the frozen layers run in 8 bits.
        budget: bytes of working memory a step may take, None for the target's.
        shape: shape of one sample where the file leaves it open.
        head: how the output is read, "auto" or one of `ttac.spec.HEADS`.
        pixels: how bytes become the model's input (`ttac.samples.pixels`), None where nobody said.
    """

    path: Path
    method: Method
    settings: Mapping[str, Any]
    target: Target
    output: Path
    batch: int
    calibration: str | Path | np.ndarray | None = None
    norms: str = "auto"
    train: str = "norms"
    quantize: str | None = None
    budget: int | None = None
    dump: Path | None = None
    dry_run: bool = False
    input: str | None = None
    logits: str | None = None
    shape: tuple[int, ...] | None = None
    head: str = "auto"
    pixels: Mapping[str, Any] | None = None

    def settled(self, facts: Facts) -> Request:
        """The same request with the defaults that depend on the model."""
        return replace(self, settings=self.method.settle(self.settings, facts))


def request(
    path: str | Path,
    *,
    method: str,
    target: str,
    output: str | Path | None,
    batch: int | None,
    norms: str,
    train: str,
    memory_budget: int | str | None,
    settings: Mapping[str, Any] | None,
    dump: str | Path | None,
    quantize: str | None,
    emit: str | None,
    pixels: str | Sequence[str] | Mapping[str, Any] | None,
    **rest: Any,
) -> Request:
    """Check and resolve the arguments of `ttac.compile`.

    Raises UsageError for a name that does not exist, a value out of bounds, or an output that is something else
    already; UnsupportedError for what this version does not do yet.
    """
    path, chosen, device = Path(path), methods.find(method), targets.find(target)
    for word, words, option in ((norms, NORMS, "--norms"), (rest.get("head", "auto"), ("auto", *HEADS), "--head")):
        if word not in words:
            raise UsageError(f"`{word}` is not one of {', '.join(words)}", where=f"`{option}`")
    if quantize not in (None, "int8"):
        raise UsageError(f"`{quantize}` is not `int8`", where="`--quantize`")
    _refuse_unbuilt(chosen, emit, train)
    if quantize and train == ALL:
        raise untrainable("`--train all --quantize int8`")
    samples = device.batch if batch is None else batch
    if samples < 1:
        raise UsageError(f"a batch of {samples} samples cannot be planned", where="`--batch`", hint="give 1 or more")
    folder = Path(output) if output is not None else path.with_name(f"{path.stem}-{chosen.name}-{device.name}.ttac")
    if not rest.get("dry_run"):
        check_replaceable(folder)
    budget = None if memory_budget is None else parse_size(str(memory_budget), "`--memory-budget`")
    stated = resolve_pixels(pixels)
    resolved = resolve(chosen, _in_pixels(chosen, settings, stated), quantize)
    return Request(
        path,
        chosen.variant(resolved),
        resolved,
        device,
        folder,
        samples,
        norms=norms,
        train=train,
        quantize=quantize,
        budget=budget,
        dump=Path(dump) if dump is not None else None,
        pixels=stated,
        **rest,
    )


def _in_pixels(
    method: Method, settings: Mapping[str, Any] | None, pixels: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """The settings; a method that distorts images takes black and white from what is stated of pixels."""
    if pixels is None or "black" not in {option.name for option in method.options}:
        return settings
    black, white = black_and_white(pixels)
    return {"black": black, "white": white, **(settings or {})}


def untrainable(where: str) -> UnsupportedError:
    """The error for weights that are to be trained and to be 8-bit."""
    return UnsupportedError(
        "kernels of 8 bits cannot be trained", where=where, hint="train the norms: leave out `--train all`"
    )


def _refuse_unbuilt(method: Method, emit: str | None, train: str) -> None:
    """What this version, or the method, does not do is refused rather than ignored."""
    if emit is not None:
        raise UnsupportedError("`--emit` is not available in this version", hint="leave the option out")
    if train == ALL and not method.trains:
        raise UnsupportedError(
            f"`{method.name}` trains nothing", where="`--train all`", hint="leave it out, or use `--method tent`"
        )
