"""Write `tests/golden/official_zoa.safetensors` and `zoa_batch.onnx`: nine steps of ZOA's published code, in float64.

    python -m tests.golden.make.official_zoa CHECKOUTS

CHECKOUTS is as for `official_methods`, with the repository `ZOA`.  Differences from the published script: the random
numbers of ttac, a mixing weight of the source that starts at 0, 16 in place of 64 samples that show a domain, and
`own_means`.  The list of untrained norms names the last block of the small transformer in place of the last three of
twelve.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import onnx
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from tests.golden.make.adapted_nets import Transformer, build
from tests.golden.make.official_foa import Vit
from tests.golden.make.official_methods import official
from tests.support.adapted import CLASSES, inputs, seed_of
from tests.support.consistency_case import numbers
from tests.support.official_zoa import BATCH, GOLDEN, SETTINGS, given
from ttac.passes.operators.random_numbers import seeded

COMMIT = "DengZeshuai/ZOA 48305fb"
Arrays = dict[str, np.ndarray]


class Bottleneck(nn.Module):
    """A block of ResNet-50 with the names of torchvision."""

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        cout = 2 * width
        self.conv1, self.bn1 = nn.Conv2d(cin, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, cout, 1, bias=False), nn.BatchNorm2d(cout)
        self.downsample = (
            nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))
            if stride > 1 or cin != cout
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        branch = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(self.bn3(self.conv3(branch)) + self.downsample(x))


class ResNet(nn.Module):
    """A ResNet of four stages of two blocks, with the names of torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()
        self.maxpool, self.avgpool = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        sizes = ((6, 4, 1), (8, 4, 2), (8, 6, 2), (12, 6, 2))
        stages = [nn.Sequential(Bottleneck(c, w, s), Bottleneck(2 * w, w, 1)) for c, w, s in sizes]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class Draws:
    """The random numbers of ttac as the published code asks for them: magnitudes, then signs, twice in each step."""

    def __init__(self, seed: int, most: int) -> None:
        self.stream, self.most, self.signs = numbers([int(word) for word in seeded(seed)]), most, Tensor()
        self.mixing = True

    def rand(self, count: int) -> Tensor:
        """Magnitudes as numbers in (0, 1]; the mixing weights take the first of `most` numbers."""
        drawn = torch.tensor([next(self.stream) for _ in range(self.most if self.mixing else count)])[:count]
        self.mixing = not self.mixing
        self.signs = (2 * drawn > 1).double()
        return 2 * drawn - self.signs

    def bernoulli(self, half: Tensor) -> Tensor:
        """1 where the sign is negative."""
        return self.signs.reshape(half.shape)


def batch_network() -> ResNet:
    """Return a network with random norms and statistics of other data than the calibration's."""
    torch.manual_seed(4)
    net = ResNet()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def export(net: nn.Module, path: Path) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.randn(2, 3, 32, 32),), str(path), dynamo=False, opset_version=17, input_names=["x"],
            output_names=["logits"], dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}}, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
    model = onnx.load(path)
    for node in model.graph.node:
        node.doc_string = ""
    onnx.save(model, path)


def options_of(kind: str) -> Namespace:
    settings = SETTINGS[kind]
    return Namespace(
        steps=1, spsa_c=settings["perturbation"], spsa_c_alpha=0.05, sp_avg=1, lr_alpha=0.01, weight_decay_alpha=0.1,
        lr=settings["lr"], spsa_momentum=0.0, weight_decay=settings["weight_decay"], alpha_scale=10.0, quant=False,
        max_weight_nums=settings["domains"], domain_t=settings["domain_distance"],
    )  # fmt: skip


def published(checkouts: Path, names: tuple[str, str], rest: Callable[[str], str]) -> tuple[Any, Any]:
    """Return the published files for the method and for the fused norms, with `rest` applied to their text."""
    sys.modules["cma"] = sys.modules["models.resnet"] = MagicMock()
    with tempfile.TemporaryDirectory() as folder:
        for room, name in zip(("tta_library", "models"), names, strict=True):
            text = (checkouts / "ZOA" / room / f"{name}.py").read_text(encoding="utf-8")
            (Path(folder) / f"{name}.py").write_text(rest(text.replace("< 64", f"< {BATCH}")), encoding="utf-8")
        method, fused = (official(Path(folder), name) for name in names)
    return method, fused


def own_means(text: str) -> str:
    """Shift each feature to its own mean, as the paper and the code for transformers do, not to that of the last."""
    wrong = "self.train_info[1][-1] - self.hist_stat"
    assert text.count(wrong) <= 1
    return text.replace(wrong, "self.train_info[1][-len(self.hist_stat):] - self.hist_stat")


def prepared(kind: str, checkouts: Path) -> tuple[Any, Any]:
    """Return the published method and its network, with the norms replaced."""
    options = options_of(kind)
    torch.set_default_dtype(torch.float32)
    net = build("layer", seed_of("layer"), inputs(seed_of("layer"))) if kind == "layer" else batch_network()
    torch.set_default_dtype(torch.float64)
    net = net.double()
    if isinstance(net, Transformer):
        vit = Vit(net)
        vit.num_features = vit.embed_dim  # type: ignore[assignment]
        method, fused = published(checkouts, ("zoa_vit", "fuse_vit"), lambda text: text.replace("blocks.9", "blocks.3"))
        model = method.configure_model(fused.FuseViT(options, vit, MagicMock()))
        model.replace_fuse_ln()
    else:
        method, fused = published(checkouts, ("zoa_resnet", "fuse_resnet"), own_means)
        model = method.configure_model(fused.FuseResNet(options, net, MagicMock()))
        model.replace_fuse_bn()
    model.alpha.data.zero_()
    model.configure_model()
    parameters = model.collect_params()
    mixing = [{"params": parameters["alpha"], "lr": options.lr_alpha, "weight_decay": options.weight_decay_alpha}]
    changes = parameters["epsilon_weight"] + parameters["epsilon_bias"]
    sgd = torch.optim.SGD(changes, options.lr, momentum=0.0, weight_decay=options.weight_decay)
    model.set_optimizers(torch.optim.AdamW(mixing), sgd)
    name = "ZOA_ViT" if kind == "layer" else "ZOA_ResNet"
    return getattr(method, name)(options, model, SETTINGS[kind]["discrepancy"]), method


def zoa(kind: str, checkouts: Path) -> Arrays:
    adapter, method = prepared(kind, checkouts)
    model, arrays = adapter.model, given(kind)
    source = torch.from_numpy(arrays["calibration"]).double().split(BATCH)
    domain = model.domain_mean, model.domain_var
    adapter.obtain_origin_stat([(part,) for part in source])
    model.domain_mean, model.domain_var = domain
    draws = Draws(SETTINGS[kind]["seed"], SETTINGS[kind]["domains"] + 1)
    method.torch = Replaced(torch, rand=draws.rand, bernoulli=draws.bernoulli)
    losses: list[float] = []
    plain = method.forward_and_get_loss

    def watched(*arguments: Any) -> Any:
        found = plain(*arguments)
        losses.append(float(found[2].detach()))
        return found

    method.forward_and_get_loss = watched
    logits, domains = [], []
    for batch in arrays["x"]:
        logits.append(adapter(torch.from_numpy(batch).double()).detach().numpy())
        domains.append(model.weight_nums - 1)
    with torch.no_grad():
        tensors = {module.name: module.get_fused_weights_and_biases() for module in model.fuse_modules}
        past = [torch.cat([torch.cat([m.weights[k], m.biases[k]]) for m in model.fuse_modules]) for k in range(1, 4)]
    after = {
        f"{name}.{role}": t for name, pair in tensors.items() for role, t in zip(("scale", "bias"), pair, strict=True)
    }
    after |= {"domain.mean": model.domain_mean, "domain.variance": model.domain_var, "stream.centre": adapter.hist_stat}
    after |= {"domains.weights": model.alpha.detach(), "domains.changes": torch.stack(past)}
    print(kind, "losses", np.round(losses, 3), "domains", domains, "weights", model.alpha.data.numpy())
    found = {"logits": np.stack(logits), "losses": np.array(losses[::2]), "domains": np.array(domains)}
    return found | {f"after/{name}": value.detach().numpy() for name, value in after.items()}


class Replaced:
    """A module with some functions replaced."""

    def __init__(self, module: Any, **functions: Any) -> None:
        self._module, self._functions = module, functions

    def __getattr__(self, name: str) -> Any:
        return self._functions.get(name) or getattr(self._module, name)


def main() -> None:
    torch.set_num_threads(1)
    nn.Module.cuda = lambda module: module  # type: ignore[method-assign, assignment, misc]
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment, misc]
    export(batch_network(), GOLDEN / "zoa_batch.onnx")
    found: Arrays = {}
    for kind in SETTINGS:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            adapted = zoa(kind, Path(sys.argv[1]))
        print(said.getvalue().splitlines()[-1])
        found |= {f"{kind}/{key}": np.ascontiguousarray(value, np.float32) for key, value in adapted.items()}
    made = {"made_by": f"{Path(__file__).name}, torch {torch.__version__}", "ZOA": COMMIT}
    save_file(found, GOLDEN / "official_zoa.safetensors", made)


if __name__ == "__main__":
    main()
