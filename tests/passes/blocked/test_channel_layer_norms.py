"""ConvNeXt stays in blocks: layer norms over the channels of maps, and layer scales (arXiv:2201.03545)."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx_ir as ir
import pytest
from safetensors.numpy import load_file

from tests.passes.blocked.test_blocked_graphs import check_numbers, names_outside, step_graphs
from tests.support.whole_models import compiled
from ttac.passes.blocked.block_graphs import block_graphs

torch = pytest.importorskip("torch")


class ChannelNorm(torch.nn.LayerNorm):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        super().__init__()
        conv = torch.nn.Conv2d
        layers = [conv(width, width, 3, padding=1, groups=width), ChannelNorm(width), conv(width, 2 * width, 1)]
        self.branch = torch.nn.Sequential(*layers, torch.nn.GELU(), conv(2 * width, width, 1))
        self.scale = torch.nn.Parameter(torch.rand(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x) * self.scale.reshape(1, -1, 1, 1)


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a net with 12 and 16 channels; in blocks of eight, 12 channels have padding."""
    torch.manual_seed(0)
    stem = [torch.nn.Conv2d(3, 12, 4, 4), ChannelNorm(12), Block(12), Block(12)]
    down = [ChannelNorm(12), torch.nn.Conv2d(12, 16, 2, 2), Block(16)]
    last = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.LayerNorm(16), torch.nn.Linear(16, 7)]
    net, folder = torch.nn.Sequential(*stem, *down, *last).eval(), tmp_path_factory.mktemp("convnext")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "batch"}}
        torch.onnx.export(
            net, (torch.rand(2, 3, 16, 16),), str(folder / "convnext.onnx"), dynamo=False, opset_version=17,
            input_names=["x"], output_names=["logits"], dynamic_axes=axes,
        )  # fmt: skip
    return compiled(folder / "convnext.onnx", folder, batch=8, method="tent")


@pytest.mark.parametrize("kernels", [False, True])
def test_the_same_numbers_in_blocks(convnext: Path, kernels: bool) -> None:
    check_numbers(convnext, kernels)


def blocked(folder: Path) -> list[ir.Node]:
    """Nodes of the step in blocks of four channels, with nodes of the library."""
    weights = set(load_file(folder / "weights.safetensors"))
    graphs = step_graphs(folder, kernels=True)
    made = block_graphs(graphs, 4, weights, names_outside(folder), kernels=True)
    return [node for model in made.graphs.values() for node in model.graph]


def test_no_transposition_of_maps_remains(convnext: Path) -> None:
    nodes = blocked(convnext)
    assert not [node for node in nodes if node.op_type == "Transpose" and len(node.inputs[0].shape or ()) == 4]  # type: ignore[union-attr]
    norms = [node for node in nodes if node.op_type.startswith("LayerNorm")]
    maps = [node for node in norms if node.attributes.get_int("axis") == 1]
    assert len(maps) == 10 and all(node.attributes.get_int("block") == 4 for node in maps)


def test_layer_scales_are_depthwise_convolutions(convnext: Path) -> None:
    convolutions = [node for node in blocked(convnext) if node.op_type == "Conv"]
    scales = [n for n in convolutions if n.attributes.get_int("group", 1) > 1 and len(n.inputs) == 2]
    assert len([n for n in scales if list(n.attributes.get_ints("kernel_shape")) == [1, 1]]) >= 3
