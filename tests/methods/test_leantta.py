"""LeanTTA: against the rule re-stated in numpy and in PyTorch, sample by sample, and where statistics degenerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ttac
from tests.conftest import Run
from tests.support.per_sample_oracle import DEFAULTS, Setting, restated
from tests.support.source_models import CONV_NORM_WEIGHTS, Weights, norm, saved, source
from tests.support.tiny_bundles import read
from tests.support.whole_models import MODELS, compiled, refused, samples
from ttac.errors import UnsupportedError, UsageError

DEMO = Path(ttac.__file__).parent / "demo"
PARITY = 1e-5
COUNT = 4
FAMILIES = ("densenet", "mobilenet_v2", "resnet", "shufflenet", "signal", "volume", "wide_resnet")
STRONG: dict[str, Setting] = {"tau": 0.1, "lambda": 1.0, "distance": "mean"}
"""Settings that move the logits far."""


def shape_of(path: Path) -> list[int]:
    sizes = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    return [size.dim_value for size in sizes[1:]]


def shifted(path: Path, count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Samples unlike each other and unlike the source."""
    x = samples(shape_of(path), count, seed)
    scale = np.linspace(0.3, 2.0, count).reshape(-1, *[1] * (x.ndim - 1))
    return (x * scale + scale - 1).astype(np.float32)


def adapter(path: Path, folder: Path, batch: int = COUNT, method: str = "leantta", **choices: Any) -> ttac.Adapter:
    return ttac.load(compiled(path, folder, method=method, batch=batch, **choices), threads=1)


def one_by_one(single: ttac.Adapter, x: np.ndarray) -> np.ndarray:
    return np.concatenate([single.step(x[i : i + 1]) for i in range(len(x))])


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_one_sample_at_a_time_follows_the_rule(family: str, tmp_path: Path) -> None:
    path, x = MODELS[family], shifted(MODELS[family])
    expected = restated(path, STRONG)(x)
    found = one_by_one(adapter(path, tmp_path, 1, settings=STRONG), x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=PARITY)
    assert np.abs(found - adapter(path, tmp_path, method="source").step(x)).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_a_batch_follow_it_each_by_itself(family: str, tmp_path: Path) -> None:
    path, x = MODELS[family], shifted(MODELS[family])
    expected, together = restated(path, STRONG)(x), adapter(path, tmp_path, settings=STRONG)
    for n in range(1, COUNT + 1):
        np.testing.assert_allclose(together.step(x[:n]), expected[:n], rtol=0, atol=PARITY)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tau": 0.0, "lambda": 3.0},
        {"tau": 0.9, "lambda": 0.05},
        {"tau": 0.5, "lambda": 1e6},
        {"tau": 0.0, "lambda": 1e6, "distance": "mean"},
        {"metric": "squared", "lambda": 2.0},
        {"variance": "unbiased", "lambda": 1.0, "distance": "mean"},
    ],
)
def test_every_reading_of_the_paper(settings: dict[str, Setting], tmp_path: Path) -> None:
    path, x = MODELS["resnet"], shifted(MODELS["resnet"])
    expected = restated(path, settings)(x)
    for batch in (1, COUNT):
        found = adapter(path, tmp_path, batch, settings=settings)
        np.testing.assert_allclose(one_by_one(found, x), expected, rtol=0, atol=PARITY)


@pytest.mark.parametrize("settings", [{"tau": 1.0}, {"lambda": 0.0}])
@pytest.mark.parametrize("batch", [1, COUNT])
def test_all_weight_on_the_source_is_the_source(settings: dict[str, Setting], batch: int, tmp_path: Path) -> None:
    path, x = MODELS["densenet"], shifted(MODELS["densenet"])
    expected = adapter(path, tmp_path, method="source").step(x)
    np.testing.assert_allclose(
        one_by_one(adapter(path, tmp_path, batch, settings=settings), x), expected, rtol=0, atol=PARITY
    )


def test_a_huge_lambda_is_the_fixed_blend_of_bn(tmp_path: Path) -> None:
    """With one sample, `bn` with a prior of p samples is tau = p/(p + 1)."""
    path, x = MODELS["volume"], shifted(MODELS["volume"])
    blend = adapter(path, tmp_path, 1, "bn", settings={"statistics": "blend", "prior": 3.0})
    free = adapter(path, tmp_path, 1, settings={"tau": 0.75, "lambda": 1e6, "distance": "mean", "metric": "variance"})
    np.testing.assert_allclose(one_by_one(free, x), one_by_one(blend, x), rtol=0, atol=PARITY)


def test_the_defaults_are_those_documented() -> None:
    from ttac.methods.leantta import METHOD
    from ttac.shared_options import ESTIMATE, PRIOR_CORRECTION

    shared = (ESTIMATE, PRIOR_CORRECTION)
    own = {option.name: option.default for option in METHOD.options if option not in shared}
    assert own == DEFAULTS


@pytest.mark.slow
@pytest.mark.parametrize("family", ["resnet", "signal", "volume"])
def test_pytorch_agrees(family: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.modules.batchnorm import _BatchNorm

    from tests.golden.make import model_gradients as make_models

    def adapt(layer: Any, inputs: tuple[Any], _: Any) -> Any:
        (x,) = inputs
        if x.ndim < 3:
            return None
        axes, mean, var = tuple(range(2, x.ndim)), layer.running_mean, layer.running_var
        first_mean = 0.1 * mean + 0.9 * x.mean(axes)
        first_var = 0.1 * var + 0.9 * x.var(axes, correction=0)
        weight = -torch.expm1(-((first_mean - mean) ** 2 / (var + layer.eps)).mean(1, keepdim=True))
        new = [weight * old + (1 - weight) * first for old, first in ((mean, first_mean), (var, first_var))]
        return torch.cat([
            torch.nn.functional.batch_norm(x[i : i + 1], m, v, layer.weight, layer.bias, False, 0.0, layer.eps)
            for i, (m, v) in enumerate(zip(*new, strict=True))
        ])  # fmt: skip

    net = make_models.build(family, make_models.told(family)["seed"]).double().eval()
    for layer in net.modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_hook(adapt)
    path = tmp_path / f"{family}.onnx"
    path.write_bytes(MODELS[family].read_bytes())
    x = shifted(path)
    with torch.no_grad():
        expected = net(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(adapter(path, tmp_path, settings=STRONG).step(x), expected, rtol=0, atol=PARITY)


# --- each sample by itself, nothing kept ------------------------------------------------------------------------------


def test_the_others_in_a_batch_do_not_matter(tmp_path: Path) -> None:
    path = MODELS["resnet"]
    together, x, others = adapter(path, tmp_path, settings=STRONG), shifted(path), 9 * shifted(path, seed=1)
    expected = together.step(x)
    for row in range(COUNT):
        mixed = others.copy()
        mixed[row] = x[row]
        assert np.array_equal(together.step(mixed)[row], expected[row])


def test_nothing_outlives_a_step(tmp_path: Path) -> None:
    path = MODELS["signal"]
    found, x = adapter(path, tmp_path, settings=STRONG), shifted(path)
    expected = found.step(x)
    found.step(50 * x)
    assert np.array_equal(found.step(x), expected)
    assert np.array_equal(found.predict(x), expected)
    assert read(found.path)["state"]["tensors"] == []
    assert found.stats["rejected"] == 0


def test_a_bundle_for_single_samples_takes_no_more(tmp_path: Path) -> None:
    path = MODELS["signal"]
    with pytest.raises(UsageError, match="planned for 1"):
        adapter(path, tmp_path, 1).step(shifted(path, 2))


# --- which norms, and their own settings ------------------------------------------------------------------------------


def test_settings_of_single_norms(tmp_path: Path) -> None:
    path, x = MODELS["resnet"], shifted(MODELS["resnet"])
    names = [site["name"] for site in read(compiled(path, tmp_path, method="leantta"))["sites"]]
    first, module = names[0], names[-1].split(".")[0]

    def own(name: str) -> dict[str, Setting]:
        given: dict[str, Setting] = {"lambda": 2.0} if name.startswith(f"{module}.") else {}
        return {**given, "tau": 0.6} if name == first else given

    settings = {**STRONG, f"tau@{first}": "0.6", f"lambda@{module}": 2.0}
    expected = restated(path, STRONG, own)(x)
    for batch in (1, COUNT):
        found = adapter(path, tmp_path, batch, settings=settings)
        np.testing.assert_allclose(one_by_one(found, x), expected, rtol=0, atol=PARITY)
        assert read(found.path)["method"]["settings"][f"tau@{first}"] == 0.6
    assert np.abs(expected - restated(path, STRONG)(x)).max() > 0.1


def test_the_last_pattern_that_fits_wins(tmp_path: Path) -> None:
    path, x = MODELS["resnet"], shifted(MODELS["resnet"])
    found = adapter(path, tmp_path, settings={**STRONG, "tau@*.1": 0.3, "tau@*": 1.0})
    source = adapter(path, tmp_path, method="source")
    np.testing.assert_allclose(found.step(x), source.step(x), rtol=0, atol=PARITY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau@nowhere": 0.5}, "`nowhere` fits no norm"),
        ({"tau@*": 1.5}, "`1.5` does not fit"),
        ({"distance@*": "sum"}, "no option `distance@[*]`"),
        ({"tau@": 0.5}, "fits no norm"),
    ],
)
def test_settings_of_single_norms_are_checked(settings: dict[str, Setting], message: str, tmp_path: Path) -> None:
    path = tmp_path / "resnet.onnx"
    path.write_bytes(MODELS["resnet"].read_bytes())
    with pytest.raises(UsageError, match=message):
        ttac.compile(path, method="leantta", settings=settings)


def test_adapting_some_norms_leaves_the_others_to_the_source(tmp_path: Path) -> None:
    path, x = MODELS["resnet"], shifted(MODELS["resnet"])
    names = [site["name"] for site in read(compiled(path, tmp_path, method="leantta"))["sites"]]
    expected = restated(path, STRONG, lambda name: {} if name in names[:2] else None)(x)
    found = adapter(path, tmp_path, settings=STRONG, train=",".join(names[:2]))
    np.testing.assert_allclose(found.step(x), expected, rtol=0, atol=PARITY)
    assert [site["name"] for site in read(found.path)["sites"]] == names[:2]
    graph = onnx.load(found.path / "forward.onnx", load_external_data=False).graph
    assert [node.op_type for node in graph.node].count("Tanh") == 2


def test_a_folded_file_adapts_as_the_unfolded_one(tmp_path: Path) -> None:
    with np.load(DEMO / "fashion_calibration.npz") as file:
        calibration = file["images"].astype(np.float32) / np.float32(255)
    with np.load(DEMO / "fashion_stream.npz") as file:
        x = file["brightness"][:COUNT].astype(np.float32) / np.float32(255)
    settings = {"tau": 0.5, "lambda": 1.0}
    plain = adapter(DEMO / "fashion_resnet_bn_unfolded.onnx", tmp_path, settings=settings)
    folded = adapter(DEMO / "fashion_resnet_bn.onnx", tmp_path, settings=settings, calibration=calibration)
    np.testing.assert_allclose(folded.step(x), plain.step(x), rtol=0, atol=5e-4)
    assert all(site["inserted"] for site in read(folded.path)["sites"])


# --- where statistics degenerate --------------------------------------------------------------------------------------

VECTORS = """
net (float[batch,3,8,8] x) => (float[batch,5] y) {
  ["/conv/Conv"] c = Conv <pads = [1,1,1,1]> (x, "conv.weight")
  ["/bn/BatchNormalization"] b = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  ["/pool/GlobalAveragePool"] p = GlobalAveragePool (b)
  ["/last/BatchNormalization"] n = BatchNormalization (p, "last.weight", "last.bias", "last.running_mean", "last.running_var")
  ["/Flatten"] f = Flatten (n)
  ["/fc/Gemm"] y = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
}
"""


def test_norms_that_see_one_value_keep_the_source(tmp_path: Path) -> None:
    path = saved(source(VECTORS, {**CONV_NORM_WEIGHTS, **norm("last", 4)}), tmp_path)
    said: list[str] = []
    found, x = adapter(path, tmp_path, 1, settings=STRONG, say=said.append), shifted(path)
    assert any("1 norms keep the source's statistics (last)" in line for line in said)
    assert [site["name"] for site in read(found.path)["sites"]] == ["bn"]
    np.testing.assert_allclose(one_by_one(found, x), restated(path, STRONG)(x), rtol=0, atol=PARITY)


def test_a_file_of_such_norms_only_is_refused(tmp_path: Path) -> None:
    text = VECTORS.replace(
        'b = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")', "b = Relu (c)"
    )
    weights = {name: shape for name, shape in CONV_NORM_WEIGHTS.items() if not name.startswith("bn.")}
    path = saved(source(text, {**weights, **norm("last", 4)}), tmp_path)
    assert "a single value" in refused(UnsupportedError, path, method="leantta", norms="keep")


def test_other_norms_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="statistics of batch norms"):
        ttac.compile(DEMO / "fashion_vit.onnx", method="leantta", dry_run=True)


def degenerate(**given: np.ndarray) -> Weights:
    return {**CONV_NORM_WEIGHTS, **{f"bn.{name}": array.astype(np.float32) for name, array in given.items()}}


@pytest.mark.parametrize("batch", [1, COUNT])
@pytest.mark.parametrize("lam", [0.25, 1e6])
def test_no_source_variance_and_constant_samples(batch: int, lam: float, tmp_path: Path) -> None:
    """Dead channels: variance 0 in the source, and samples of one colour; all numbers stay finite and right."""
    path = saved(source(weights=degenerate(running_var=np.array([0, 1e-12, 1, 1]))), tmp_path)
    settings: dict[str, Setting] = {"tau": 0.0, "lambda": lam, "distance": "mean"}
    x = shifted(path)
    x[0], x[1] = 0.0, 3.0
    found = one_by_one(adapter(path, tmp_path, batch, settings=settings), x)
    expected = restated(path, settings)(x)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("behind", ["conv", "input"])
def test_means_far_beyond_the_deviation(behind: str, tmp_path: Path) -> None:
    """E[x^2] - E[x]^2 of a mean of 300 and a deviation of 1 would lose five digits: the input is centred before."""
    far = degenerate(running_mean=np.full(4, 300.0), running_var=np.ones(4))
    if behind == "conv":
        text, weights = (
            None,
            {**far, "conv.weight": np.random.default_rng(0).normal(0, 0.2, (4, 3, 3, 3)).astype(np.float32)},
        )
        kept = {"conv.bias": np.full(4, 300.0, np.float32)}
        text = source.__defaults__[0].replace('(x, "conv.weight")', '(x, "conv.weight", "conv.bias")')  # type: ignore[index]
        model = source(text, {**weights, **kept})
    else:
        text = source.__defaults__[0].replace('Conv <pads = [1,1,1,1]> (x, "conv.weight")', "Relu (x)")  # type: ignore[index]
        weights = {name: w for name, w in far.items() if name != "conv.weight"}
        model = source(text.replace("batch,3,8,8", "batch,4,8,8"), weights)
    path = saved(model, tmp_path)
    x = shifted(path) + np.float32(300.0 if behind == "input" else 0.0)
    settings: dict[str, Setting] = {"tau": 0.25, "lambda": 1e6, "distance": "mean"}
    found = one_by_one(adapter(path, tmp_path, 1, settings=settings), x)
    np.testing.assert_allclose(found, restated(path, settings)(x), rtol=0, atol=5e-4)


# --- messages to the user -------------------------------------------------------------------------------------------------


def test_command_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODELS["signal"].read_bytes())
    seen = run(
        "compile", "model.onnx", "--method", "leantta", "--batch", "1", "--set", "tau@0*=0.5", "--set", "tau=0.9"
    )
    assert seen.code == 2 and "fits no norm that is adapted" in seen.err
    seen = run("compile", "model.onnx", "--method", "leantta", "--batch", "1", "--set", "tau@*=0.5", "--set", "tau=0.9")
    assert seen.code == 0, seen.err
    assert "2 sites with sample statistics, 0 tensors train" in seen.err
    assert "tau" in run("methods", "leantta").out


def test_baking_says_that_statistics_are_not_kept(run: Run, tmp_path: Path) -> None:
    found = adapter(MODELS["signal"], tmp_path)
    found.save(tmp_path / "state.safetensors")
    seen = run("bake", str(found.path), "--state", str(tmp_path / "state.safetensors"), "-o", "baked.onnx")
    assert seen.code == 0, seen.err
    assert "2 norm sites keep the source statistics" in seen.err
