"""Export the zoo with every exporter, and PyTorch's answers: `python -m benchmarks.model_matrix_export DIR`.

Each network goes to `DIR/NAME/EXPORTER.onnx`; where the exporter refuses, the reason goes to `EXPORTER.error`.  The
file `peers.npz` has images and PyTorch's results: logits of the source in float32, and in float64 the logits with batch
statistics and the gradient of the mean entropy by norm parameter.  Existing files stay unchanged.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.model_matrix_folders import export_each
from benchmarks.model_matrix_zoo import ZOO, build

BATCH = 4
EXPORTERS: dict[str, Callable[[nn.Module, Tensor, Path], None]] = {}


def exporter(name: str) -> Callable[[Callable[[nn.Module, Tensor, Path], None]], Callable[..., None]]:
    def register(function: Callable[[nn.Module, Tensor, Path], None]) -> Callable[..., None]:
        EXPORTERS[name] = function
        return function

    return register


def legacy(model: nn.Module, x: Tensor, path: Path, opset: int, *, free: bool, keep: bool) -> None:
    torch.onnx.export(
        model,
        (x,),
        str(path),
        dynamo=False,
        opset_version=opset,
        input_names=["x"],
        output_names=["logits"],
        training=torch.onnx.TrainingMode.PRESERVE if keep else torch.onnx.TrainingMode.EVAL,
        do_constant_folding=not keep,
        dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}} if free else None,
    )


@exporter("legacy-13")
def _13(model: nn.Module, x: Tensor, path: Path) -> None:
    legacy(model, x[:1], path, 13, free=False, keep=False)


@exporter("legacy-14")
def _14(model: nn.Module, x: Tensor, path: Path) -> None:
    legacy(model, x[:1], path, 14, free=True, keep=False)


@exporter("legacy-15")
def _15(model: nn.Module, x: Tensor, path: Path) -> None:
    legacy(model, x[:2], path, 15, free=False, keep=True)


@exporter("legacy-16")
def _16(model: nn.Module, x: Tensor, path: Path) -> None:
    legacy(model, x[:2], path, 16, free=False, keep=True)


@exporter("legacy-17")
def _17(model: nn.Module, x: Tensor, path: Path) -> None:
    legacy(model, x[:2], path, 17, free=True, keep=True)


@exporter("dynamo")
def _dynamo(model: nn.Module, x: Tensor, path: Path) -> None:
    torch.onnx.export(model, (x[:1],), str(path), input_names=["x"], output_names=["logits"], external_data=False)


@exporter("dynamo-plain")
def _plain(model: nn.Module, x: Tensor, path: Path) -> None:
    torch.onnx.export(
        model,
        (x[:2],),
        str(path),
        optimize=False,
        input_names=["x"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        external_data=False,
    )


def export(name: str, folder: Path) -> dict[str, str]:
    """Write the network with every exporter, and return the refusals."""
    from timm.layers import set_fused_attn

    model, side = build(name)
    torch.manual_seed(1)
    x = torch.randn(BATCH, 3, side, side)
    if not (folder / "peers.npz").exists():
        np.savez(folder / "peers.npz", x=x.numpy(), **peers(model, x))
    refused = {}
    for kind, write in EXPORTERS.items():
        path = folder / f"{kind}.onnx"
        if path.exists() or path.with_suffix(".error").exists():
            continue
        set_fused_attn(kind != "legacy-13")  # opset 13 has no form of torch's fused attention
        try:
            write(build(name)[0], x, path)
        except Exception as error:
            path.unlink(missing_ok=True)
            text = " ".join(str(error).split())
            refused[kind] = f"{type(error).__name__}: {text[:300]}"
            (folder / f"{kind}.error").write_text(refused[kind])
    set_fused_attn(True)
    return refused


def peers(model: nn.Module, x: Tensor) -> dict[str, np.ndarray]:
    """Return PyTorch's logits, logits with batch statistics, and the entropy's gradients by norm parameter."""
    with torch.no_grad():
        answers = {"logits": model(x).numpy()}
    model = copy.deepcopy(model).double().eval()
    norms = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
        if "Norm" in type(module).__name__ or isinstance(module, nn.LayerNorm):
            norms[name] = module
    trained = {
        f"{name}.{role}": value
        for name, module in norms.items()
        for role, value in module.named_parameters(recurse=False)
        if value.is_floating_point()
    }
    model.requires_grad_(False)
    for value in trained.values():
        value.requires_grad_(True)
    logits = model(x.double())
    log_p = logits.log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1).mean()
    gradients = torch.autograd.grad(entropy, list(trained.values()), allow_unused=True)
    answers["adapted"] = logits.detach().numpy()
    for key, gradient in zip(trained, gradients, strict=True):
        if gradient is not None:
            answers[f"gradient/{key}"] = gradient.numpy()
    return answers


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    export_each({name: root / name for name in sys.argv[2:] or ZOO}, export)


if __name__ == "__main__":
    main()
