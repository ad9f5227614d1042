"""Every hook of a method, used by a package outside the repository."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.methods.test_installed_methods import declare
from tests.support.tiny_bundles import read
from tests.support.whole_models import MODELS, compiled, parameters_of, samples, state_of
from ttac.errors import UsageError

OUTSIDE = '''
import numpy as np

from ttac.errors import UsageError
from ttac.passes.adapt.centre import constant
from ttac.passes.differentiate.losses import Loss, entropies, mean
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.context import finished, new_graph
from ttac.spec import KeepPolicy, Method, Option, Statistics


def use_half(rewriter, site):
    batch, op = rewriter.observe(site), rewriter.op
    own = float(rewriter.settings["own"])
    mean = op.Add(op.Mul(batch.mean, own), (1 - own) * (constant(site.node, 3) - batch.shift))
    var = op.Add(op.Mul(batch.var, own), (1 - own) * constant(site.node, 4))
    rewriter.normalise_with(site, mean, var)
    return []


def check(subject):
    if subject.batch > 32:
        raise UsageError("too many samples for `outside`")


def first_site(subject):
    return frozenset({subject.sites[0].name})


def half_entropy(op, scores, head):
    scalar = op.Mul(mean(op, entropies(op, scores, head), "entropy"), 0.5, name="entropy.half")
    return Loss(scalar=scalar, stats={"entropy": scalar}, head=head)


def centred(subject):
    """Subtract a running mean of the logits, as NEO does with features."""
    graph = subject.model.graph
    op, logits = Builder(graph, "refine", subject.model.opset_imports[""]), graph.outputs[0]
    initial = np.zeros(subject.head.classes, np.float32)
    with op.at("centre"):
        centre = state_input(graph, "logits.centre", initial)
        following = op.Add(op.Mul(centre, 0.9), op.Mul(op.ReduceMean(logits, [0], keepdims=0), 0.1))
        moved = op.Sub(logits, following)
    moved.name, logits.name = logits.name, f"{logits.name}.source"
    following.name, graph.outputs[0] = "logits.centre.next", moved
    return [StateTensor(name="logits.centre", role="statistic", initial=initial, value=centre, next=following)]


def scales(subject):
    return {"scales": np.abs(subject.adaptation.parameters[0].initial)}


def report(context):
    op = new_graph("report", context.opset)
    return finished(op, {"largest": op.Identity(np.max(context.constants["scales"]))}, stats={"largest": "largest"})


METHOD = Method(
    name="outside", title="every hook", paper="", needs="BatchNorm",
    statistics=lambda settings: Statistics("half", "outside:use_half"),
    trains=True, choose_trained="outside:first_site", loss=half_entropy, check="outside:check", refine=centred,
    constants=scales, keep=KeepPolicy("part", lambda settings: "blocks"),
    options=(
        Option("own", 0.5, "weight of the batch", low=0.0, high=1.0),
        Option("part", 0.6, "keep ratio", low=0.0, high=1.0),
        Option("optimizer", "sgd", "optimizer"), Option("lr", 0.0, "0 takes 1 over the batch"),
        Option("momentum", 0.0, "momentum"), Option("low", "", "a black pixel"),
    ),
    settle=lambda settings, facts: {**settings, "lr": settings["lr"] or 1 / facts.batch},
    pixels=lambda black, white: {"low": black},
    graphs={"report": report, "update": "ttac.passes.step_graphs.optimizers:update"},
    program=(
        {"run": "forward"}, {"run": "backward"}, {"run": "report"}, {"run": "update"}, {"return": "logits"},
    ),
)
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the package `outside`."""
    (tmp_path / "outside.py").write_text(OUTSIDE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside", raising=False)
    declare(tmp_path, "ttac.methods", "outside = outside:METHOD", name="outside")
    return tmp_path


def test_a_package_outside_uses_every_hook(outside: Path) -> None:
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    folder = compiled(MODELS["resnet"], outside, method="outside", batch=8, pixels=pixels)
    manifest = read(folder)
    assert [site["trained"] for site in manifest["sites"]].count(True) == 1
    assert {site["statistics"] for site in manifest["sites"]} == {"half"}
    assert manifest["method"]["settings"]["lr"] == 1 / 8 and "-2" in manifest["method"]["settings"]["low"]
    adapter = ttac.load(folder)
    before = state_of(adapter)
    adapter.step(samples((3, 16, 16), 8, seed=0))
    moved = {name for name, value in state_of(adapter).items() if not np.array_equal(value, before[name])}
    trained = {f"{site['name']}.{role}" for site in manifest["sites"] if site["trained"] for role in ("scale", "bias")}
    assert moved >= {"logits.centre", *trained}
    assert adapter.stats["largest"] > 0 and adapter.stats["entropy"] > 0


def test_a_loss_that_reports_no_entropy_is_guarded(outside: Path) -> None:
    """The guard reads the output: it learns from noise samples of many classes, holds constants, and has its check."""
    text = (outside / "outside.py").read_text(encoding="utf-8")
    text = text.replace('stats={"entropy": scalar}', 'stats={"half": scalar}').replace("refine=centred, ", "")
    text = text.replace("from ttac.spec", "from ttac.shared_options import GUARD\nfrom ttac.spec")
    text = text.replace("    options=(\n", "    options=(\n        *GUARD,\n").replace("refine=centred,", "")
    (outside / "outside.py").write_text(text, encoding="utf-8")
    x = samples((3, 16, 16), 64, seed=0)
    settings = {"guard": "on", "guard_check": 3}
    folder = compiled(MODELS["resnet"], outside, method="outside", batch=16, settings=settings, calibration=x)
    adapter = ttac.load(folder)
    for _ in range(3):
        adapter.step(x[:16])
    assert adapter.stats["held"] == 0 and "check_loss" in adapter.stats and adapter.stats["drift"] > 0
    before = parameters_of(adapter)
    adapter.step(np.zeros_like(x[:16]))
    assert adapter.stats["held"] == 1
    assert all(np.array_equal(parameters_of(adapter)[name], array) for name, array in before.items())


def test_a_check_outside_refuses(outside: Path) -> None:
    with pytest.raises(UsageError, match="too many samples"):
        compiled(MODELS["resnet"], outside, method="outside", batch=64)


@pytest.mark.parametrize("name", ["guard", "window", "predict", "guard-check", "update-2"])
def test_a_graph_with_a_name_of_ttac_is_refused(name: str, outside: Path) -> None:
    """Such a graph would silently replace ttac's graph, or count as a stage of another."""
    text = (outside / "outside.py").read_text(encoding="utf-8")
    (outside / "outside.py").write_text(text.replace('"report": report', f'"{name}": report'), encoding="utf-8")
    with pytest.raises(UsageError, match=f"a graph of the method is called `{name}`"):
        compiled(MODELS["resnet"], outside, method="outside", batch=8)
