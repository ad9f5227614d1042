"""The stand-in for `onnxruntime.InferenceSession` has every call of the engine's session."""

from __future__ import annotations

from threading import Event

import numpy as np
import onnx
import onnxruntime
import pytest

import ttac
from tests.support.real_files import POOLED, images, written
from ttac.errors import UsageError
from ttac.runtime.session import REFUSED

X = images(4)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> ttac.InferenceSession:
    """A session on a bundle of a model with metadata and two outputs."""
    folder = tmp_path_factory.mktemp("session")
    nodes = f"{POOLED} y = MatMul (f, wf) \n b4 = MatMul (f, wb)"
    path = written(folder, "(float[N,3,8,8] x) => (float[N,5] y, float[N,4] b4)", nodes)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"names": "{0: 'cat', 1: 'dog'}"})
    onnx.save(model, path)
    ttac.compile(path, method="bn", batch=4, output=folder / "b.ttac")
    return ttac.InferenceSession(folder / "b.ttac", adapt=False)


def test_every_public_call_of_the_engine_exists(session: ttac.InferenceSession) -> None:
    calls = {name for name in dir(onnxruntime.InferenceSession) if not name.startswith("_")}
    assert calls - set(dir(session)) <= set(REFUSED)
    for name in REFUSED:
        with pytest.raises(UsageError, match=f"(?s)a bundle has no `{name}`: .*`ttac bake`"):
            getattr(session, name)
    with pytest.raises(AttributeError, match="has no attribute `runs`"):
        _ = session.runs


def test_the_metadata_is_that_of_the_file(session: ttac.InferenceSession) -> None:
    meta = session.get_modelmeta()
    assert meta.custom_metadata_map == {"names": "{0: 'cat', 1: 'dog'}"}
    assert meta.graph_name == "m"


def test_descriptions(session: ttac.InferenceSession) -> None:
    assert session.get_overridable_initializers() == []
    assert session.get_provider_options() == {"CPUExecutionProvider": {}}
    assert session.get_session_options().intra_op_num_threads == session.adapter.threads
    session.set_providers(["CPUExecutionProvider"])
    session.set_providers([("CPUExecutionProvider", {}), "CPUExecutionProvider"])
    session._providers = ["XnnpackExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(
        UsageError, match="the session has the providers XnnpackExecutionProvider, CPUExecutionProvider"
    ):
        session.set_providers(["CPUExecutionProvider"])


def test_bound_arrays(session: ttac.InferenceSession) -> None:
    y, boxes = session.run(None, {"x": X})
    binding = session.io_binding()
    binding.bind_cpu_input("x", X)
    kept = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((4, 4), np.float32))
    binding.bind_ortvalue_output("b4", kept)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[1], y)
    np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), boxes)
    np.testing.assert_array_equal(kept.numpy(), boxes)
    with pytest.raises(UsageError, match="`bind_cpu_input`"):
        binding.bind_input("x", "cuda", 0, np.float32, (4, 3, 8, 8), 0)
    with pytest.raises(UsageError, match="leave out `buffer_ptr`"):
        binding.bind_output("y", "cuda")
    binding.clear_binding_inputs()
    binding.clear_binding_outputs()
    assert binding.names == [] and binding.copy_outputs_to_cpu() == []


def test_values_of_the_engine(session: ttac.InferenceSession) -> None:
    value = onnxruntime.OrtValue.ortvalue_from_numpy(X)
    (y,) = session.run_with_ort_values(["y"], {"x": value})
    np.testing.assert_array_equal(y.numpy(), session.run(["y"], {"x": X})[0])
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", value)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], y.numpy())


def test_a_run_in_the_background(session: ttac.InferenceSession) -> None:
    done, found = Event(), []

    def take(outputs: list[np.ndarray], data: str, error: str) -> None:
        found.append((len(outputs), data, error))
        done.set()

    for names in (["y"], ["z"]):
        done.clear()
        session.run_async(names, {"x": X}, take, "mine")
        assert done.wait(30)
    assert found[0] == (1, "mine", "") and "no output `z`" in found[1][2]
