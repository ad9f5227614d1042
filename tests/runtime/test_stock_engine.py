"""The same bundle on a stock onnxruntime, without training: the same numbers.

`TTAC_STOCK_ORT` names a folder that holds one (`pip install --no-deps --target FOLDER onnxruntime`); `make test` makes
it.  The engine is a process's own, so the stock one runs in another.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import ttac
from tests.support.whole_models import MODELS, Arrays, compiled, samples, state_of

FOLDER = os.environ.get("TTAC_STOCK_ORT", "")
pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="set TTAC_STOCK_ORT to a folder with a stock onnxruntime"),
    pytest.mark.slow,
]
STEPS = (8, 8, 8, 3)
NETS = ["mobilenet_v3", "transformer", "hourglass"]
CASES = {name: {"method": "tent"} for name in NETS} | {
    "densenet": {"method": "tent", "settings": {"optimizer": "sgd", "lr": 0.01, "statistics": "blend"}},
    "wide_resnet": {"method": "bn"},
    "resnext": {"method": "surgeon", "settings": {"cr": True, "black": "-3", "white": "3", "cr_weight": 1.0}},
}

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime
import ttac
print(onnxruntime.__version__, Path(onnxruntime.__file__).parent.parent)
print([name for name in ("onnx", "onnx_ir", "networkx", "torch") if name in sys.modules])
with np.load("inputs.npz") as inputs:
    for bundle in sys.argv[1:]:
        adapter = ttac.load(bundle, threads=1)
        steps = {key.split("/")[1]: adapter.step(x) for key, x in inputs.items() if key.startswith(Path(bundle).stem + "/")}
        np.savez(bundle + ".logits.npz", **steps)
        adapter.save(bundle + ".safetensors")
"""


def test_steps_on_the_stock_engine(tmp_path: Path) -> None:
    bundles: dict[str, Path] = {}
    inputs: Arrays = {}
    for name, choices in CASES.items():
        bundles[name] = compiled(MODELS[name], tmp_path, batch=8, **choices)
        shape = ttac.load(bundles[name]).input_shape
        inputs |= {f"{bundles[name].stem}/{i}": samples(shape, size, seed=i) for i, size in enumerate(STEPS)}
    np.savez(tmp_path / "inputs.npz", **inputs)
    lines = stock(tmp_path, [str(bundle) for bundle in bundles.values()])
    version, place = lines[0].split(" ", 1)
    assert place == str(Path(FOLDER).resolve()) and lines[1] == "[]"
    for name, bundle in bundles.items():
        adapter = ttac.load(bundle, threads=1)
        with np.load(f"{bundle}.logits.npz") as theirs:
            for step in range(len(STEPS)):
                ours = adapter.step(inputs[f"{bundle.stem}/{step}"])
                scale = max(1.0, float(np.abs(ours).max()))
                np.testing.assert_allclose(
                    theirs[str(step)], ours, rtol=0, atol=1e-5 * scale, err_msg=f"{name}, {version}"
                )
        if CASES[name] == {"method": "tent"}:
            continue  # Adam moves a parameter of no influence by a full step in the direction of its rounding error
        state = load_file(f"{bundle}.safetensors")
        for key, value in state_of(adapter).items():
            scale = max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(state[key], value, rtol=0, atol=1e-5 * scale, err_msg=f"{name}, {key}")


def stock(folder: Path, arguments: list[str]) -> list[str]:
    """Output of the script when the stock engine comes before the one installed here."""
    path = os.pathsep.join([str(Path(FOLDER).resolve()), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SCRIPT, *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
