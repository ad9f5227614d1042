"""The model that `ttac.compile` gets: a path, an ONNX model in memory, or a PyTorch module with an example."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from ttac.errors import RuntimeMissingError, UnsupportedError, UsageError

NAME = "model.onnx"
"""File name of a model that has none."""
HINT = "give the path of an `.onnx` file, an `onnx.ModelProto`, or a `torch.nn.Module` with `example=`"


@contextmanager
def model_file(model: Any, example: Any = None) -> Iterator[Path]:
    """The path of the model's file; a model in memory gets a temporary file for the time of the block.

    Args:
        example: input of a PyTorch module, a tensor [n, ...] or a tuple of several; None for other models.

    Raises:
        UsageError: `model` is nothing of the kind, or `example` is missing or superfluous.
        UnsupportedError: PyTorch cannot export the module.
        RuntimeMissingError: PyTorch's exporter lacks a package.
    """
    module = _is_module(model)
    if module and example is None:
        raise UsageError("a PyTorch module needs an example of its input", where="`example=`", hint="give a tensor")
    if example is not None and not module:
        raise UsageError("only a PyTorch module takes an example", where="`example=`", hint="leave it out")
    if isinstance(model, (str, Path)):
        yield Path(model)
        return
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        path = Path(folder) / NAME
        if module:
            _export(model, example, path)
        elif isinstance(model, onnx.ModelProto):
            onnx.save(model, path)
        else:
            raise UsageError(f"`{type(model).__name__}` is no model", where="`ttac.compile`", hint=HINT)
        yield path


def _is_module(model: Any) -> bool:
    """Whether `model` is a module of PyTorch, which ttac does not import by itself."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def _export(module: Any, example: Any, path: Path) -> None:
    """Write the module in evaluation mode, with its norms and with an open number of samples."""
    import torch

    inputs = tuple(_at_least_two(torch, tensor) for tensor in (example if isinstance(example, tuple) else (example,)))
    samples = torch.export.Dim("N")
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they concern PyTorch's own code
            torch.onnx.export(
                module,
                inputs,
                str(path),
                dynamo=True,
                optimize=False,
                verbose=False,
                dynamic_shapes=tuple({0: samples} for _ in inputs),
            )
    except ImportError as error:
        raise RuntimeMissingError(
            f"PyTorch's exporter needs a package: {error}", where="`ttac.compile`", hint="`pip install onnxscript`"
        ) from error
    except Exception as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise UnsupportedError(
            f"PyTorch cannot export the module: {reason}",
            where="`ttac.compile`",
            hint="export the module yourself with `torch.onnx.export`, and give the file",
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training


def _at_least_two(torch: Any, tensor: Any) -> Any:
    """The example as a tensor of two samples or more: for one sample the exporter fixes the number."""
    value = torch.as_tensor(tensor)
    if not value.ndim:
        raise UsageError("the example has no axis of samples", where="`example=`", hint="give a tensor [n, ...]")
    return value if len(value) > 1 else torch.cat([value, value])
