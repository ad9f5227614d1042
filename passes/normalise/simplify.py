"""Constant folding and removal of no-ops by onnxsim, in a child process because its native code may crash.

The simplification is optional: after any failure the model comes back unchanged, and `say` receives the reason.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from ttac.child_process import run_module
from ttac.passes.load.model_file import Say, quiet
from ttac.passes.load.weights_apart import SMALL_BYTES, with_weights, without_weights

SECONDS = 120
"""Time limit in seconds. A ResNet-50 takes three, most of them for the import of onnxsim."""

LARGE_BYTES = 32 << 20
"""Largest tensor that onnxsim sees."""

TOTAL_BYTES = 1 << 30
"""Sum of all constants above which onnxsim sees no weight."""

GROWTH, ALLOWANCE_BYTES = 2, 1 << 20
"""Factor, and bytes on top, beyond which grown constants (a Tile written out) discard the simplification."""


def simplify(model: ir.Model, say: Say = quiet, *, seconds: float = SECONDS) -> ir.Model:
    """Return a model that computes the same with fewer nodes, or `model` itself if onnxsim fails."""
    constants = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    limit = LARGE_BYTES if sum(tensor.nbytes for tensor in constants) < TOTAL_BYTES else SMALL_BYTES
    bare, weights = without_weights(model, limit)
    foldable = max([SMALL_BYTES, *(tensor.nbytes for tensor in constants if tensor.nbytes <= limit)])
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        source, result = Path(folder) / "source.onnx", Path(folder) / "simple.onnx"
        onnx.save_model(bare, str(source))
        problem = _run_child([str(source), str(result), str(foldable)], seconds)
        if problem:
            say(f"not simplified: onnxsim {problem}")
            return model
        simple = with_weights(onnx.load_model(str(result)), weights, like=model)
    problem = damage(model, simple)
    if problem:
        say(f"not simplified: onnxsim {problem}")
        return model
    return simple


def worthwhile(model: ir.Model) -> bool:
    """Return whether there are weights to compute or paddings to merge, the best work of onnxsim."""
    return any(
        node.op_type == "Pad" or all(value is None or value.const_value is not None for value in node.inputs)
        for node in model.graph
    )


def _run_child(arguments: list[str], seconds: float) -> str:
    """Return the problem, or an empty string."""
    try:
        done = run_module("ttac.passes.normalise.simplify_child", arguments, seconds=seconds)
    except subprocess.TimeoutExpired:
        return f"took longer than {seconds:g} s"
    except OSError as error:
        return f"could not be started: {error}"
    if done.returncode < 0:
        return f"died of signal {-done.returncode}"
    if done.returncode or not Path(arguments[1]).is_file():
        return f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}"
    return ""


def damage(before: ir.Model, after: ir.Model) -> str:
    """Return how `after` fails to be a fair simplification of `before`, or an empty string."""
    if [_names(v) for v in (before.graph.inputs, before.graph.outputs)] != [
        _names(v) for v in (after.graph.inputs, after.graph.outputs)
    ]:
        return "changed the inputs or outputs"
    missing = norm_counts(before) - norm_counts(after)
    if missing:
        return "removed norms: " + ", ".join(f"{count} {kind}" for kind, count in sorted(missing.items()))
    if _bytes(after) > GROWTH * _bytes(before) + ALLOWANCE_BYTES:
        return f"made the constants grow from {_bytes(before)} to {_bytes(after)} bytes"
    return ""


def _names(values: Sequence[ir.Value]) -> list[str | None]:
    return [value.name for value in values]


def norm_counts(model: ir.Model) -> Counter[str]:
    """Return the number of norms of each kind in the graph, without norms of weights."""
    reached = {id(value) for value in model.graph.inputs}
    counts: Counter[str] = Counter()
    for node in model.graph:
        if any(value is not None and id(value) in reached for value in node.inputs):
            reached.update(id(value) for value in node.outputs)
            if node.op_type.endswith("Normalization"):
                counts[node.op_type] += 1
    return counts


def _bytes(model: ir.Model) -> int:
    constants = [value.const_value for value in model.graph.initializers.values()]
    constants += [node.attributes["value"].as_tensor() for node in model.graph if "value" in node.attributes]
    return sum(tensor.nbytes for tensor in constants if tensor is not None)
