"""Errors of ttac's methods and of the same methods in PyTorch: `python -m benchmarks.agreement`.

Both run the shipped nets on the shipped corrupted images with the same batches in the same order, and reset to the
source model before each corruption.  PyTorch runs in float64: the first step of Adam depends on the sign of a gradient.
Where a gradient is zero up to rounding, two float32 programs differ at a large rate, and so do PyTorch in float32 and
in float64.  The exit code is 1 where two means differ by more than `--within` points.

`--forms` compares the three forms of each bundle instead, in this engine and in those of `--engines`, folders of
`pip install --target`.  The exit code is 1 where two logits differ by more than 1e-4 of the largest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import ttac
from benchmarks.form_agreement import LARGEST, table
from benchmarks.networks import wide_resnet
from benchmarks.peers import METHODS, restated
from ttac.evaluation.protocols import Order, Shift, schedule
from ttac.evaluation.source_inference import inference
from ttac.settings import split_assignments

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path(ttac.__file__).resolve().parent / "demo"
NETS = {"BatchNorm": "fashion_resnet_bn_unfolded", "GroupNorm": "fashion_resnet_gn", "ViT": "fashion_vit"}
WIDE = "WRN-16-2"
ANY_NORM = ("source", "tent", "eata", "sar")
"""Methods whose PyTorch form knows norms other than batch norms."""

BATCH, WITHIN = 64, 0.3
SHIFTS = ("gaussian_noise", "shot_noise", "motion_blur", "snow", "brightness", "contrast", "pixelate")


def network(kind: str, path: Path | None = None) -> torch.nn.Module:
    """Return a net in PyTorch with the weights of its ONNX file; raises RuntimeError where outputs differ.

    The file is that of a shipped net, or `path` for `WRN-16-2`, which `benchmarks.train_fashion_nets` trains.
    """
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        nets = import_module("fashion_nets")
    finally:
        sys.path.remove(str(ROOT / "examples"))
    makers = {"BatchNorm": nets.ResNet, "GroupNorm": nets.group_norm_resnet, "ViT": nets.VisionTransformer,
              WIDE: partial(wide_resnet, 16, 2, colours=1)}  # fmt: skip
    net: torch.nn.Module = makers[kind]().eval()
    path = path or DEMO / f"{NETS[kind]}.onnx"
    fill(net, onnx.load(str(path)).graph)
    x = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
    with torch.no_grad():
        difference = np.abs(net(torch.from_numpy(x)).numpy() - np.asarray(inference(path, 1)(x))[0]).max()
    if difference > 1e-4:
        raise RuntimeError(f"the {kind} net in PyTorch differs from {path.name} by {difference:.1e}")
    return net


def fill(net: torch.nn.Module, graph: Any) -> None:
    """Give the net the file's weights: by name, and weights that the exporter renamed by their order of use."""
    arrays = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
    state = net.state_dict()
    named = {name: array for name, array in arrays.items() if name in state and array.shape == state[name].shape}
    net.load_state_dict(named, strict=False)
    products = [node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in arrays]
    linear = [m for name, m in net.named_modules() if isinstance(m, torch.nn.Linear) and f"{name}.weight" not in named]
    for module, name in zip(linear, products, strict=True):
        module.weight.data = arrays[name].T.contiguous()
    affine = [name for node in graph.node if node.op_type in ("Mul", "Add") for name in node.input if name in arrays]
    norms = [module for module in net.modules() if isinstance(module, torch.nn.GroupNorm)]
    for position, module in enumerate(norms):
        scale, bias = affine[2 * position : 2 * position + 2]
        module.weight.data, module.bias.data = arrays[scale].flatten(), arrays[bias].flatten()


def errors(
    kind: str, methods: Sequence[str], shifts: Sequence[str], samples: int, settings: Mapping[str, Any] | None = None
) -> dict[str, tuple[float, float]]:
    """Return for each method the mean errors of ttac and of PyTorch, in per cent.

    `settings` go to all methods that have them.
    """
    with np.load(DEMO / "fashion_stream.npz") as file:
        arrays = {name: file[name][:samples] for name in shifts}
        labels = file["labels"][:samples].astype(np.int64)
    both, path = {}, DEMO / f"{NETS[kind]}.onnx"
    with tempfile.TemporaryDirectory(prefix="ttac-agreement-") as folder:
        data: dict[str, Any] = {**arrays, "labels": labels}
        options = {"calibration": DEMO / "fashion_calibration.npz"}
        ours = ttac.evaluate(
            path,
            data,
            methods=methods,
            settings={"guard": "off", **(settings or {})},
            protocols=["reset-each-shift"],
            batch=BATCH,
            options=options,
            output=folder,
        )
        for missing in ours.missing:
            raise missing.reason
        for method in methods:
            (manifest,) = (
                ttac.Bundle.read(bundle).manifest
                for bundle in (Path(folder) / "bundles").glob(f"{path.stem}-{method}-*")
            )
            rows = [row["error"] for row in ours.rows() if row["method"] == method]
            theirs = [wrong(kind, method, manifest, name, arrays[name], labels) for name in shifts]
            both[method] = (100 * float(np.mean(rows)), 100 * float(np.mean(theirs)))
    return both


def wrong(kind: str, method: str, manifest: Any, name: str, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of wrong answers of PyTorch on one corruption, with the batches of `ttac.evaluate`."""
    with np.load(DEMO / "fashion_calibration.npz") as file:
        calibration = tensor(file["images"])
    untrained = [position for position, site in enumerate(manifest["sites"]) if not site.get("trained")]
    peer = restated(method, network(kind).double(), manifest["method"]["settings"], untrained, calibration)
    misses = 0
    for batch in schedule("continual", [Shift(name)], len(images), labels, Order(), batch=BATCH):
        logits = peer.step(tensor(images[batch.rows]))
        misses += int((logits.argmax(1).numpy() != labels[batch.rows]).sum())
    return misses / len(images)


def tensor(images: np.ndarray) -> torch.Tensor:
    """Return images of bytes as the net's input, in float64."""
    return torch.from_numpy((images.reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255)).astype(np.float64))


def main() -> None:
    """Print both errors of every method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas between them")
    parser.add_argument("--samples", type=int, default=1024, help="images of each corruption")
    parser.add_argument("--within", type=float, default=WITHIN, help="points that two means may differ by")
    parser.add_argument("--set", action="append", default=[], help="an option of all methods that have it, name=value")
    parser.add_argument("--forms", action="store_true", help="compare the forms of bundles instead")
    parser.add_argument("--net", type=Path, help="a file for all methods of --forms")
    parser.add_argument("--engines", nargs="*", default=[], help="folders of further engines for --forms")
    asked = parser.parse_args()
    if asked.forms:
        sys.exit(int(table(asked.methods.split(","), asked.engines, asked.net) > LARGEST))
    print(f"torch {torch.__version__}, {asked.samples} images of {len(SHIFTS)} corruptions; error in %\n")
    print("| net | method | ttac | PyTorch | difference |\n|---|---|---:|---:|---:|")
    worst = 0.0
    for kind in NETS:
        named = [method for method in asked.methods.split(",") if kind == "BatchNorm" or method in ANY_NORM]
        both = errors(kind, named, SHIFTS, asked.samples, split_assignments(asked.set))
        for method, (ours, theirs) in both.items():
            print(f"| {kind} | `{method}` | {ours:.2f} | {theirs:.2f} | {ours - theirs:+.2f} |", flush=True)
            worst = max(worst, abs(ours - theirs))
    if worst > asked.within:
        sys.exit(1)


if __name__ == "__main__":
    main()
