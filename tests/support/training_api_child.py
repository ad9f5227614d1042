"""`python training_api_child.py FOLDER SAMPLES.npy LR OUT.npz`: steps of onnxruntime-training's own API.

The API's package imports PyTorch, which these steps do not need, so its `__init__` is left out.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import onnxruntime


def main() -> None:
    """Run a step per batch in SAMPLES [steps, n, ...], and write the outputs, the parameters and the evaluation."""
    folder, samples, lr, out = sys.argv[1:]
    package = types.ModuleType("onnxruntime.training")
    package.__path__ = [str(Path(onnxruntime.__file__).parent / "training")]
    sys.modules["onnxruntime.training"] = package
    from onnxruntime.training import api

    x = np.load(samples)
    state = api.CheckpointState.load_checkpoint(f"{folder}/checkpoint")
    module = api.Module(f"{folder}/training_model.onnx", state, f"{folder}/eval_model.onnx")
    optimizer = api.Optimizer(f"{folder}/optimizer_model.onnx", module)
    optimizer.set_learning_rate(float(lr))
    module.train()
    outputs, losses = [], []
    for batch in x:
        loss, output = module(batch)
        optimizer.step()
        module.lazy_reset_grad()
        outputs.append(output)
        losses.append(loss)
    parameters = {name: np.array(value.data) for name, value in state.parameters}
    module.eval()
    _, evaluated = module(x[0])
    np.savez(out, outputs=np.stack(outputs), losses=np.array(losses), evaluated=evaluated, **parameters)


if __name__ == "__main__":
    main()
