"""The source model of a compile, an inspection or an evaluation, by the options that choose its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ttac.learned_outputs import main_output
from ttac.passes.load.model_file import load, quiet


def load_source(path: str | Path, choices: Mapping[str, Any], say: Callable[[str], None] = quiet) -> ir.Model:
    """Return the model of the file, in inference form.

    Args:
        choices: options of a compile; `input`, `logits`, `hold` and `batch_axis` are read, and may be absent.
        say: receives one line for each change.

    Raises UsageError and UnsupportedError as `ttac.passes.load.model_file.load` does.
    """
    names = ("input", "hold", "batch_axis")
    return load(path, output=main_output(choices.get("logits")), say=say, **{name: choices.get(name) for name in names})
