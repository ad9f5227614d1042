"""The driver of a compile, room by room: an ONNX file, a method and a target in, a bundle out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttac import methods
from ttac.build_graphs import build_graphs, plan_residuals
from ttac.finish import Finished, finish
from ttac.garbage import uncollected
from ttac.memory_check import OverBudget
from ttac.model_argument import model_file
from ttac.open_sizes import open_content
from ttac.options import CompileOptions
from ttac.reports.progress import RoomLog
from ttac.rooms import (
    adapt_model,
    choose_norms,
    compute_constants,
    differentiate_model,
    load_model,
    normalise_model,
    quantize_layers,
    read_head,
    read_samples,
    settle_settings,
)
from ttac.sizes import format_size

if TYPE_CHECKING:
    import onnx
    import torch

    from ttac.compile_state import CompileState
    from ttac.runtime.bundle import Bundle

TRIES = 6
"""Number of plans that a compile tries for a step within the budget; each try repeats the rooms from plan on."""


def compile_model(
    model: str | Path | onnx.ModelProto | torch.nn.Module,
    *,
    example: Any = None,
    method: str = methods.DEFAULT,
    target: str = "cpu",
    output: str | Path | None = None,
    batch: int | None = None,
    calibration: str | Path | np.ndarray | Mapping[str, np.ndarray] | None = None,
    norms: str = "auto",
    train: str = "norms",
    quantize: str | None = None,
    memory_budget: int | str | None = None,
    settings: Mapping[str, Any] | None = None,
    dump: str | Path | None = None,
    emit: str | None = None,
    dry_run: bool = False,
    input: str | None = None,
    logits: str | None = None,
    hold: Mapping[str, Any] | None = None,
    batch_axis: Mapping[str, Any] | None = None,
    shape: Sequence[int] | Mapping[str, Sequence[int]] | str | None = None,
    max_shape: Sequence[int] | Mapping[str, Sequence[int]] | str | None = None,
    head: str = "auto",
    axis: int | None = None,
    background: str = "auto",
    pixels: str | Sequence[str] | Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Compile `model` for test-time adaptation; returns the bundle, written to the folder `output`.

    Args:
        model: the path of an ONNX file, an ONNX model in memory, or a PyTorch module, which PyTorch exports.
        example: input of a PyTorch module: a tensor [n, ...], or a tuple of several.
        say: function that gets one line per room.

    `ttac.options.CompileOptions` describes the other arguments.

    Raises:
        UsageError, UnsupportedError, BudgetError, RuntimeMissingError, VerificationError: see `ttac.errors`; nothing
            is left behind.
    """
    choices = {name: value for name, value in locals().items() if name not in ("model", "example", "say")}
    with model_file(model, example) as path:
        return compile_with(CompileOptions.from_mapping(path, choices), say)


def compile_with(options: CompileOptions, say: Callable[[str], None]) -> Bundle:
    """Compile the model of `options`, one call per room; `say` gets one line per room."""
    with uncollected():
        log = RoomLog(say, options.dump)
        state = load_model(options, log)
        state = read_samples(state, log)
        state = normalise_model(state, log)
        state = read_head(state, log)
        state = choose_norms(state, log)
        state = settle_settings(state, log)
        state = quantize_layers(state, log)
        state = adapt_model(state, log)
        state = compute_constants(state, log)
        state = differentiate_model(state, log)
        return finish_within_budget(state, log)


def finish_within_budget(state: CompileState, log: RoomLog) -> Bundle:
    """The finished bundle; while a step measures above the budget and a smaller plan exists, plan for less.

    Raises BudgetError with the least memory that a step was measured to need.
    """
    goal = budget = state.options.memory_budget
    refusals: list[OverBudget] = []
    for left in reversed(range(TRIES)):
        choice = plan_residuals(state, goal, log)
        content = build_graphs(state, choice, log)
        if state.options.max_shape is not None:
            content = open_content(state, choice, content, log)
        outcome = finish(content, log)
        if isinstance(outcome, Finished):
            return outcome.bundle
        refusals.append(outcome)
        if goal is None or budget is None or not choice.can_shrink or not left:
            break
        # The last try is for the least there is.
        goal = int(goal * min(budget / outcome.needs, 0.92)) if left > 1 else 0
        if choice.layers:
            state = state.keeping(min(budget / outcome.needs, 0.8) if left > 1 else 0.0)
        log.note(f"needs {format_size(outcome.needs)}: planned again")
    raise min(refusals, key=lambda refusal: refusal.needs).error()
