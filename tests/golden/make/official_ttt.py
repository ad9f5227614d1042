"""Write `tests/golden/official_ttt.safetensors` and `rotation_group.onnx`: the published TTT on six images, in float64.

    python -m tests.golden.make.official_ttt CHECKOUTS

CHECKOUTS is as for `official_methods`, with yueatsprograms/ttt_cifar_release acac817.  The functions are those of its
script; the random numbers of copies and turns are those of ttac.  The network has random weights.
"""

from __future__ import annotations

import ast
import copy
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional

from tests.golden.make.adapted_nets import Block
from tests.golden.make.official_methods import official
from tests.support.consistency_case import numbers
from tests.support.official_ttt import GOLDEN, MODEL, SETTINGS, SIDE, images
from ttac.passes.operators.random_numbers import seeded

COMMIT = "yueatsprograms/ttt_cifar_release acac817"
FUNCTIONS = ("adapt_single", "test_single")
CLASSES, LEAST = 6, 0.01


class Joint(nn.Module):
    """A shared part, a classifier and a rotation head."""

    def __init__(self) -> None:
        super().__init__()
        self.ext = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.GroupNorm(2, 8), nn.ReLU(), Block(8, 8, 2))
        self.classifier, self.head = (
            nn.Sequential(Block(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, count))
            for count in (CLASSES, 4)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.ext(x)
        return self.classifier(shared), self.head(shared)


class Drawn:
    """`torch` for the published file, and its copies, with the random numbers of ttac."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.stream: Iterator[float] = numbers([int(word) for word in seeded(settings["seed"])])
        self.shift, self.black, self.turns = settings["shift"], float(settings["black"]), list[int]()

    def copied(self, image: Tensor) -> Tensor:
        """Return a shifted and perhaps mirrored copy; its turn waits for `randint`."""
        down, right, mirror, turn = (next(self.stream) for _ in range(4))
        self.turns.append(int(np.ceil(turn * 4)) - 1)
        top, left = (int(np.ceil(number * (2 * self.shift + 1))) - 1 for number in (down, right))
        padded = functional.pad(image, (self.shift,) * 4, value=self.black)
        crop = padded[:, top : top + SIDE, left : left + SIDE]
        return crop.flip(2) if mirror < 0.5 else crop

    def randint(self, limit: int, size: tuple[int], dtype: Any) -> Tensor:
        """Return the turns of the last copies."""
        turns, self.turns = self.turns, []
        return torch.tensor(turns, dtype=dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def published(checkouts: Path, net: Joint, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the functions of the published script, which parses arguments when it is imported."""
    folder = checkouts / "ttt_cifar_release"
    text = (folder / "test_calls" / "test_adapt.py").read_text(encoding="utf-8")
    chosen = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name in FUNCTIONS]
    drawn, rotation = Drawn(settings), official(folder, "utils.rotation")
    rotation.torch = drawn
    ssh = official(folder, "models.SSHead").ExtractorHead(net.ext, net.head)
    names: dict[str, Any] = {
        "torch": torch, "nn": nn, "ssh": ssh, "tr_transforms": drawn.copied, "te_transforms": lambda image: image,
        "rotate_batch": rotation.rotate_batch, "criterion_ssh": nn.CrossEntropyLoss(),
        "optimizer_ssh": torch.optim.SGD(ssh.parameters(), lr=settings["lr"]),
        "args": Namespace(
            fix_bn=False, fix_ssh=False, niter=settings.get("iterations", 1), batch_size=settings["copies"]
        ),
    }  # fmt: skip
    exec(compile(ast.Module(chosen, []), "test_adapt.py", "exec"), names)
    return names


def run(checkouts: Path, net: Joint, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """Do the loop of the script over the images."""
    names, source = published(checkouts, net, settings), copy.deepcopy(net.state_dict())
    found, adapted = [], []
    for image in torch.from_numpy(images()).double():
        if settings.get("fresh"):
            net.load_state_dict(source)
        sure = names["test_single"](names["ssh"], image, 0)[1]
        adapted.append(sure < settings.get("threshold", 1.0) + 0.001)
        if adapted[-1]:
            names["adapt_single"](image)
        with torch.no_grad():
            found.append(net.eval()(image[None])[0][0])
    after = {name: value.detach().numpy() for name, value in net.named_parameters() if "classifier" not in name}
    return {"logits": torch.stack(found).numpy(), "adapted": np.array(adapted, np.float64), **after}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Joint().eval()
    torch.onnx.export(
        net, (torch.rand(2, 3, SIDE, SIDE),), str(MODEL), dynamo=False, opset_version=17, input_names=["x"],
        output_names=["logits", "rotation"], dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}, "rotation": {0: "N"}},
    )  # fmt: skip
    onnx.checker.check_model(onnx.load(MODEL))
    torch.set_default_dtype(torch.float64)
    Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment, misc]
    found = {}
    for name, settings in SETTINGS.items():
        arrays = run(Path(sys.argv[1]), copy.deepcopy(net).double(), settings)
        print(name, arrays["adapted"])
        found |= {f"{name}/{key}": np.ascontiguousarray(value, np.float32) for key, value in arrays.items()}
    versions = {"made_by": f"{Path(__file__).name}, torch {torch.__version__}", "commit": COMMIT}
    save_file(found, GOLDEN / "official_ttt.safetensors", versions)


if __name__ == "__main__":
    main()
