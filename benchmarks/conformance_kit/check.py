"""Run the conformance kit with the Python reader, on the engine of this environment.

    python -m benchmarks.conformance_kit.check KIT

It prints the engine and the largest difference, and fails at the first call that differs.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ttac.errors import RuntimeMissingError, TtacError, UsageError, VerificationError
from ttac.runtime import load
from ttac.runtime.adapter import Adapter
from ttac.runtime.engine_import import engine

ERRORS = {"runtime-missing": RuntimeMissingError, "verification": VerificationError}
COUNTED = ("form", "form_reason", "milliseconds")

Arrays = dict[str, np.ndarray]


def check(folder: Path) -> float:
    """Return the largest difference as a multiple of 1 + |expected|; raises AssertionError above the tolerance."""
    kit = json.loads((folder / "kit.json").read_text(encoding="utf-8"))
    worst = 0.0
    for case in kit["cases"]:
        tensors, adapter = load_file(folder / case["tensors"]), load(folder / case["bundle"])
        for number, call in enumerate(case["calls"]):
            difference = _call(adapter, call, tensors, folder)
            assert difference <= kit["tolerance"], f"case {case['name']}, call {number} differs by {difference}"
            worst = max(worst, difference)
    for entry in kit["refused"]:
        assert _refusal(folder / entry["bundle"]) is ERRORS[entry["error"]], f"`{entry['name']}` is not refused so"
    return worst


def _refusal(bundle: Path) -> type[TtacError] | None:
    """The kind of the error of loading the bundle; None if it loads."""
    try:
        load(bundle)
    except TtacError as error:
        return type(error)
    return None


def _call(adapter: Adapter, call: Mapping[str, Any], tensors: Arrays, folder: Path) -> float:
    """Do one call; return its largest difference."""
    inputs = {name: tensors[key] for name, key in call.get("inputs", {}).items()}
    found: Arrays = {}
    try:
        if call["call"] in ("step", "predict"):
            outputs = getattr(adapter, call["call"])(inputs)
            found = outputs if isinstance(outputs, dict) else {adapter.outputs[0].name: outputs}
        elif call["call"] == "restore":
            adapter.restore(folder / call["file"])
        elif call["call"] == "reset":
            adapter.reset()
    except (UsageError, VerificationError):
        assert call.get("refused"), "a valid call is refused"
        return 0.0
    assert not call.get("refused"), f"{call['call']} is not refused"
    state, metadata = _saved(adapter)
    if call["call"] == "save":
        assert metadata == (folder / call["file"]).read_bytes()[: len(metadata)], "the saved state has another header"
    differences = [_difference(found[name], tensors[key]) for name, key in call.get("outputs", {}).items()]
    differences += [_difference(state[name], tensors[key]) for name, key in call["state"].items()]
    stats = {name: value for name, value in adapter.stats.items() if name not in COUNTED}
    assert set(stats) == set(call["stats"]) and set(state) == set(call["state"])
    differences += [_difference(np.array(stats[name]), np.array(float(value))) for name, value in call["stats"].items()]
    return max(differences, default=0.0)


def _saved(adapter: Adapter) -> tuple[Arrays, bytes]:
    """The state as a file has it, and the head of the file up to the checksum."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "state.safetensors"
        adapter.save(path)
        data = path.read_bytes()
        return load_file(path), data[: data.index(b'"checksum"')]


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference; infinite for another dtype, shape or place of NaN."""
    if (found.dtype.kind, found.shape) != (expected.dtype.kind, expected.shape) and found.ndim + expected.ndim:
        return math.inf
    a, b = found.astype(np.float64), expected.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return math.inf
    with np.errstate(invalid="ignore"):
        return float(np.max(np.nan_to_num(np.abs(a - b) / (1 + np.abs(b))), initial=0.0))


def main() -> int:
    """Check the kit in the folder of the first argument."""
    logging.getLogger("ttac").setLevel(logging.ERROR)
    folder = Path(sys.argv[1])
    worst, kit = check(folder), json.loads((folder / "kit.json").read_text(encoding="utf-8"))
    calls, refused = sum(len(case["calls"]) for case in kit["cases"]), len(kit["refused"])
    counts = f"{len(kit['cases'])} cases, {calls} calls, {refused} bundles refused"
    print(f"onnxruntime {engine().__version__}: {counts}, largest difference {worst:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
