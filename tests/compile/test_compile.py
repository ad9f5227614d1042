"""`ttac.compile` as a whole: the files and models that it accepts, and its refusals in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ttac
from tests.support.source_models import CONV_NORM, CONV_NORM_WEIGHTS, Weights, norm, saved, source
from tests.support.tiny_bundles import read
from tests.support.whole_models import compiled, refused, samples, state_of
from ttac.errors import TtacError, UnsupportedError, UsageError

SECOND = 'b2 = BatchNormalization (b, "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var")'
TWO = CONV_NORM.replace("(b)", "(b2)").replace('["/Relu"]', f'["/bn2/Norm"] {SECOND}\n  ["/Relu"]')
"""`CONV_NORM` with a second norm behind the first."""
TWO_WEIGHTS: Weights = {**CONV_NORM_WEIGHTS, **norm("bn2", 4)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(source(), tmp_path)


# --- files that are no model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"not a model at all", "not an ONNX model"),
        (b"PK\x03\x04rest of a zip", "a PyTorch checkpoint or zip"),
        (None, "not an ONNX model, or cut short"),
    ],
)
def test_a_file_that_is_no_model(content: bytes | None, said: str, model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-40] if content is None else content)
    assert said in refused(UnsupportedError, model)


def test_no_file(tmp_path: Path) -> None:
    assert "no such file" in refused(UsageError, tmp_path / "none.onnx")
    (tmp_path / "folder").mkdir()
    assert "a folder" in refused(UsageError, tmp_path / "folder")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("gone.bin", "files with the model's weights are missing"),
        ("../outside.bin", "outside the model's folder"),
        ("/etc/hostname", "outside the model's folder"),
    ],
)
def test_weights_that_are_not_beside_the_model(location: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(4096))
    inner = tmp_path / "inner"
    inner.mkdir()
    proto = source()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path = inner / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert said in refused(UnsupportedError, path)


def test_external_weights_are_read(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    whole, split = saved(source(), tmp_path), inner / "model.onnx"
    onnx.save_model(onnx.load(whole), split, save_as_external_data=True, location="w.bin", size_threshold=0)
    x = samples((3, 8, 8), 4)
    steps = [ttac.load(compiled(path, tmp_path, batch=4)).step(x) for path in (whole, split)]
    np.testing.assert_array_equal(*steps)


def test_opsets(tmp_path: Path) -> None:
    x, found = samples((3, 8, 8), 4), []
    for opset in (9, 13, 17, 18, 21):
        text = CONV_NORM if opset > 10 else CONV_NORM.replace("<transB = 1>", "<alpha = 1.0, transB = 1>")
        folder = tmp_path / str(opset)
        folder.mkdir()
        bundle = compiled(saved(source(text, opset=opset), folder), folder, batch=4)
        assert read(bundle)["target"]["opset"] == max(opset, 18)
        assert all(onnx.load(path).opset_import[0].version == max(opset, 18) for path in bundle.glob("*.onnx"))
        assert all(onnx.load(path).ir_version <= 10 for path in bundle.glob("*.onnx"))
        adapter = ttac.load(bundle)
        found.append([adapter.step(x), adapter.step(x)])
    np.testing.assert_allclose(found, np.broadcast_to(found[0], np.shape(found)), rtol=1e-5)


@pytest.mark.parametrize(("opset", "said"), [(6, "older than 7"), (99, "newer than onnx")])
def test_an_opset_out_of_reach(opset: int, said: str, tmp_path: Path) -> None:
    proto = source()
    proto.opset_import[0].version = opset
    assert said in refused(UnsupportedError, saved(proto, tmp_path))


def test_a_target_that_executes_older_opsets_only(tmp_path: Path) -> None:
    from ttac import targets

    board = tmp_path / "board.toml"
    board.write_text(targets.source("cpu").replace("[cpu]", "[board]").replace("opset = 21", "opset = 18"))
    said = refused(UnsupportedError, saved(source(opset=20), tmp_path), target=str(board))
    assert "opset 20, `board` executes up to 18" in said and "opset_version=18" in said


# --- models that do not fit -------------------------------------------------------------------------------------------

NO_NORM = """
net (float[N,3,8,8] x) => (float[N,4] y) {
  c = Conv (x, "conv.weight", "conv.bias")
  r = Relu (c)
  d = Conv (r, "next.weight", "next.bias")
  q = Relu (d)
  p = GlobalAveragePool (q)
  f = Flatten (p)
  y = Gemm (f, "fc.weight")
}
"""
NO_NORM_WEIGHTS: Weights = {
    "conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "next.weight": (4, 4, 3, 3), "next.bias": (4,), "fc.weight": (4, 4),
}  # fmt: skip


def test_no_norm_and_no_calibration(tmp_path: Path) -> None:
    path = saved(source(NO_NORM, NO_NORM_WEIGHTS), tmp_path)
    said = refused(UnsupportedError, path)
    assert "`--calibration PATH`" in said and "torch.onnx.export(" in said and "`conv`" in said and "`next`" in said
    assert "`--norms keep` restores none" in refused(UnsupportedError, path, norms="keep")
    adapter = ttac.load(compiled(path, tmp_path, batch=4, calibration=samples((3, 8, 8), 64)))
    assert [site["inserted"] for site in read(adapter.path)["sites"]] == [True, True]
    assert np.isfinite(adapter.step(samples((3, 8, 8), 4))).all() and adapter.stats["rejected"] == 0


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        (samples((3, 8, 9), 4), "shape [3, 8, 9], the model takes [3, 8, 8]"),
        (np.full((4, 3, 8, 8), np.nan, np.float32), "NaN or infinity"),
        (np.zeros((0, 3, 8, 8), np.float32), "holds no sample"),
        ("nothing.npz", "nothing.npz"),
    ],
)
def test_calibration_that_does_not_fit(calibration: Any, said: str, tmp_path: Path) -> None:
    path = saved(source(NO_NORM, NO_NORM_WEIGHTS), tmp_path)
    assert said in refused(UsageError, path, calibration=calibration)


def test_several_inputs(tmp_path: Path) -> None:
    """The sum of the classifier's scores and of a second input: both are inputs of the bundle."""
    text = (
        CONV_NORM.replace("x) =>", "x, float[batch,5] extra) =>")
        .replace(" y = Gemm", " z = Gemm")
        .replace('"fc.bias")', '"fc.bias")\n  y = Add (z, extra)')
    )
    bundle = compiled(saved(source(text), tmp_path), tmp_path, method="source", batch=4)
    assert [entry["name"] for entry in read(bundle)["inputs"]] == ["x", "extra"]


def test_several_outputs(tmp_path: Path) -> None:
    text = CONV_NORM.replace("(float[batch,5] y)", "(float[batch,5] y, float[batch,4] features)").replace(
        "f =", "features ="
    )
    text = text.replace("Gemm <transB = 1> (f", "Gemm <transB = 1> (features")
    path = saved(source(text), tmp_path)
    said = refused(UsageError, path)
    assert "has 2 outputs that could hold predictions" in said and "`--logits y`" in said
    for name in ("y", "features"):
        adapter = ttac.load(compiled(path, tmp_path, batch=4, logits=name))
        outputs = adapter.step(samples((3, 8, 8), 4))
        assert adapter.output.name == name and {n: a.shape for n, a in outputs.items()} == {
            "y": (4, 5),
            "features": (4, 4),
        }
    assert "no output `z`" in refused(UsageError, path, logits="z")


def test_operators_without_gradient_are_listed_together(tmp_path: Path) -> None:
    flatten = '["/Flatten"] f = Flatten ('
    text = TWO.replace(f"{flatten}p)", f'["one"] h = Sinh (p) ["two"] i = Asinh (h) {flatten}i)')
    path = saved(source(text, TWO_WEIGHTS), tmp_path)
    said = refused(UnsupportedError, path)
    assert "no gradient for `Asinh`, `Sinh`" in said and "`--train" in said
    assert "node `one` (Sinh)" in said and "node `two` (Asinh)" in said
    ttac.load(compiled(path, tmp_path, method="bn", batch=4)).step(samples((3, 8, 8), 4))


def test_an_operator_before_the_trained_sites_needs_no_gradient(tmp_path: Path) -> None:
    text = TWO.replace("b2 = Batch", 'a = Asinh (b) ["/bn2/Norm"] b2 = Batch').replace("(b, ", "(a, ")
    path = saved(source(text, TWO_WEIGHTS), tmp_path)
    assert "`Asinh`" in refused(UnsupportedError, path)
    trained = state_of(ttac.load(compiled(path, tmp_path, batch=4, train="bn2")))
    assert {name for name in trained if name.endswith((".scale", ".bias"))} == {"bn2.scale", "bn2.bias"}


def test_train_names_the_sites(tmp_path: Path) -> None:
    path = saved(source(TWO, TWO_WEIGHTS), tmp_path)
    for pattern, names in (("bn", ["bn"]), ("bn*", ["bn", "bn2"]), ("bn2,bn", ["bn", "bn2"]), ("norms", ["bn", "bn2"])):
        assert [site["name"] for site in read(compiled(path, tmp_path, batch=4, train=pattern))["sites"]] == names
    assert "`layer9` fits no norm site" in refused(UsageError, path, train="layer9")
    assert "did you mean `bn2`" in refused(UsageError, path, train="bm2")


def test_sites_that_are_not_named_stay_as_they_were(tmp_path: Path) -> None:
    """The first norm adapts; the second keeps the source's statistics."""
    path = saved(source(TWO, TWO_WEIGHTS), tmp_path)
    x = samples((3, 8, 8), 4)
    both, first, none = (
        ttac.load(compiled(path, tmp_path, batch=4, **choices)).step(x)
        for choices in ({"method": "bn"}, {"method": "bn", "train": "bn"}, {"method": "source"})
    )
    assert np.abs(first - both).max() > 1e-2 and np.abs(first - none).max() > 1e-2


@pytest.mark.parametrize("train", ["norms", "bn", "bn2"])
def test_norms_whose_tensors_the_exporter_merged(train: str, tmp_path: Path) -> None:
    """Two norms read one scale and one bias; each trained one owns its own, the other keeps its old values."""
    text = TWO.replace('"bn2.weight", "bn2.bias"', '"bn.weight", "bn.bias"')
    merged = {name: given for name, given in TWO_WEIGHTS.items() if name not in ("bn2.weight", "bn2.bias")}
    random = np.random.default_rng(0)
    weights = {name: random.uniform(0.5, 1.5, size).astype(np.float32) for name, size in merged.items()}  # type: ignore[arg-type]
    apart = {**weights, "bn2.weight": weights["bn.weight"], "bn2.bias": weights["bn.bias"]}
    (tmp_path / "apart").mkdir()
    paths = [saved(source(text, weights), tmp_path), saved(source(TWO, apart), tmp_path / "apart")]
    found = []
    for path in paths:
        names = [site["name"] for site in read(compiled(path, tmp_path, batch=4, train="norms"))["sites"]]
        chosen = {"norms": "norms", "bn": names[0], "bn2": names[1]}[train]
        adapter = ttac.load(compiled(path, tmp_path, batch=4, train=chosen, settings={"lr": 0.1}))
        found.append([adapter.step(samples((3, 8, 8), 4, seed)) for seed in range(4)])
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6)


HEADS = {
    "softmax": "s = Softmax <axis = -1> (y)",
    "log_softmax": "s = LogSoftmax <axis = 1> (y)",
}


@pytest.mark.parametrize("head", list(HEADS))
def test_a_model_that_ends_in_probabilities(head: str, tmp_path: Path) -> None:
    """They come back as before; the entropy is that of the scores behind them."""
    random = np.random.default_rng(3)
    weights = {name: random.normal(size=size).astype(np.float32) ** 2 for name, size in CONV_NORM_WEIGHTS.items()}  # type: ignore[call-overload]
    weights["fc.weight"] = random.normal(0, 3, (5, 4)).astype(np.float32)
    text = CONV_NORM.replace("(float[batch,5] y)", "(float[batch,5] s)").replace("\n}", f"\n  {HEADS[head]}\n}}")
    (tmp_path / "bare").mkdir()
    plain = ttac.load(compiled(saved(source(CONV_NORM, weights), tmp_path / "bare"), tmp_path, batch=4))
    adapter = ttac.load(compiled(saved(source(text, weights), tmp_path), tmp_path, batch=4))
    x = samples((3, 8, 8), 4)
    for _ in range(3):
        y = plain.step(x)
        log_p = y - np.logaddexp.reduce(y, axis=1, keepdims=True)
        expected = np.exp(log_p) if head == "softmax" else log_p
        np.testing.assert_allclose(adapter.step(x), expected, rtol=1e-4, atol=1e-6)
        assert adapter.stats["entropy"] == pytest.approx(plain.stats["entropy"], rel=1e-5)
    for name, value in state_of(plain).items():
        np.testing.assert_allclose(state_of(adapter)[name], value, rtol=1e-4, atol=1e-6)


def test_a_norm_that_the_loss_does_not_see_is_left_alone(tmp_path: Path) -> None:
    """No gradient is not a gradient of zero: weight decay and momentum would move it."""
    text = TWO.replace("r = Relu (b2)", "g = Greater (b2, zero) k = Cast <to = 1> (g) r = Mul (b, k)")
    path = saved(source(text, {**TWO_WEIGHTS, "zero": np.zeros((), np.float32)}), tmp_path)
    settings = {"optimizer": "sgd", "weight_decay": 0.5, "lr": 0.5}
    bundle = compiled(path, tmp_path, batch=4, settings=settings)
    assert [(site["name"], site["trained"]) for site in read(bundle)["sites"]] == [("bn", True), ("bn2", False)]
    adapter = ttac.load(bundle)
    before = state_of(adapter)
    adapter.step(samples((3, 8, 8), 4))
    after = state_of(adapter)
    assert np.abs(after["bn.scale"] - before["bn.scale"]).min() > 1e-3
    assert "bn2.scale" not in after or np.array_equal(after["bn2.scale"], before["bn2.scale"])


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"quantize": "int8"}, "there is no data to measure them on"),
        ({"quantize": "int8", "train": "all"}, "kernels of 8 bits cannot be trained"),
        ({"quantize": "int4"}, "`int4` is no choice"),
        ({"train": "all", "method": "bn"}, "`bn` trains no weights"),
        ({"batch": 0}, "`0` does not fit"),
        ({"norms": "some"}, "`some` is no choice"),
        ({"memory_budget": "much"}, "`much` is not a size"),
        ({"settings": {"lr": "fast"}}, "`fast` does not fit option `lr`"),
        ({"method": "tnet"}, "there is no method `tnet`"),
        ({"target": "desk"}, "there is no target `desk`"),
        ({"shape": (3, 9, 9)}, "[3, 9, 9] do not fit the input `x`"),
    ],
)
def test_choices_that_are_refused(choice: dict[str, Any], said: str, model: Path) -> None:
    with pytest.raises(TtacError) as caught:
        ttac.compile(model, **choice)
    assert said in str(caught.value) and [path.name for path in model.parent.iterdir()] == ["model.onnx"]
