"""A replacement for `onnxruntime.InferenceSession` that adapts to its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from ttac.errors import TtacError, UsageError
from ttac.runtime import load
from ttac.runtime.bundle import graph_at
from ttac.runtime.engine import open_session, present
from ttac.runtime.engine_import import engine
from ttac.runtime.io_binding import IOBinding
from ttac.runtime.providers import CPU, Provider, provider_name
from ttac.runtime.records import SOURCE, TensorSpec

TYPES = {"float32": "float", "float64": "double"}
"""numpy's dtype names -> ONNX Runtime's names, where they differ."""

REFUSED = {
    "end_profiling": "the engine's profiler is not on",
    "get_profiling_start_time_ns": "the engine's profiler is not on",
    "get_tuning_results": "its sessions are tuned together",
    "set_tuning_results": "its sessions are tuned together",
    "run_with_ortvaluevector": "it takes a vector of the training engine",
    "set_ep_dynamic_options": "its sessions have one set of options",
}
"""Call of the engine's session that a bundle cannot do -> reason."""
WAY_OUT = "use `run`, or onnxruntime on the model of `ttac bake`"


@dataclass(frozen=True)
class NodeArg:
    """An input or output as ONNX Runtime describes it: the batch axis is a symbol, `type` is like `tensor(float)`."""

    name: str
    shape: list[int | str]
    type: str


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata of a model, as ONNX Runtime describes it."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


class InferenceSession:
    """`session.run(None, {"x": x})` as before; each call is one `adapter.step`.

    The session of the source model is `onnxruntime.InferenceSession("model.onnx")`; this session takes the bundle's
    path. With `adapt=False` it predicts with the unchanged state.  Use `adapter` to reset, save and restore.

    Args:
        path_or_bytes: the bundle's folder.
        sess_options: only its `intra_op_num_threads` counts; the bundle decides the other session options.
        providers: as in `ttac.load`; None means those of the bundle's target.  A provider that the engine lacks is left
            out, with a warning.
        provider_options: options of each provider, in the order of `providers`.
        adapt: whether `run` adapts; the attribute may be changed at any time.
        threads: as in `ttac.load`.
        form: as in `ttac.load`.

    Raises the errors of `ttac.load`.
    """

    def __init__(
        self,
        path_or_bytes: str | Path,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Any = None,
        *,
        adapt: bool = True,
        threads: int | None = None,
        form: str = "auto",
    ) -> None:
        if threads is None and sess_options is not None:
            threads = sess_options.intra_op_num_threads or None
        wanted = None if providers is None else _present(providers, provider_options)
        self.adapter = load(path_or_bytes, threads=threads, form=form, providers=wanted)
        self._providers = self.adapter.providers
        self.adapt = adapt

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, np.ndarray], run_options: Any = None
    ) -> list[np.ndarray]:
        """Return the named outputs (None: all) for the feed, and adapt unless `adapt` is off.

        `run_options` is not used.  Raises the errors of `adapter.step`, and UsageError for an output the model lacks;
        in both cases the state is unchanged.
        """
        known = [spec.name for spec in self.adapter.outputs]
        for name in output_names or ():
            if name not in known:
                hint = "it has " + ", ".join(f"`{other}`" for other in known)
                raise UsageError(f"the model has no output `{name}`", where="`output_names`", hint=hint)
        outputs = self.adapter.step(input_feed) if self.adapt else self.adapter.predict(input_feed)
        arrays = outputs if isinstance(outputs, dict) else {known[0]: outputs}
        return [arrays[name] for name in output_names or known]

    def get_inputs(self) -> list[NodeArg]:
        """The model's inputs."""
        return [_described(spec) for spec in self.adapter.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The model's outputs."""
        return [_described(spec) for spec in self.adapter.outputs]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """An empty list: no weight of a bundle is an input."""
        return []

    def get_modelmeta(self) -> ModelMetadata:
        """The metadata of the compiled model, read from the bundle's source graph at each call."""
        meta = open_session(graph_at(self.adapter.path / SOURCE), optimised=False).get_modelmeta()
        custom = {key: text for key, text in meta.custom_metadata_map.items() if not key.startswith("ttac.")}
        return ModelMetadata(
            producer_name=meta.producer_name,
            graph_name=meta.graph_name,
            domain=meta.domain,
            description=meta.description,
            graph_description=meta.graph_description,
            version=meta.version,
            custom_metadata_map=custom,
        )

    def get_session_options(self) -> Any:
        """New session options of the engine, with the threads of the bundle."""
        options = engine().SessionOptions()
        options.intra_op_num_threads = self.adapter.threads
        return options

    def get_providers(self) -> list[str]:
        """Names of the providers that run the bundle, best first."""
        return [provider_name(provider) for provider in self._providers]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """The options of each provider."""
        return {
            provider_name(provider): {} if isinstance(provider, str) else dict(provider[1])
            for provider in self._providers
        }

    def set_providers(self, providers: Sequence[Any] | None = None, provider_options: Any = None) -> None:
        """Do nothing for the providers of this session; raises UsageError for others."""
        wanted = [provider_name(provider) for provider in _present(providers, provider_options)]
        if wanted != self.get_providers():
            problem = f"the session has the providers {', '.join(self.get_providers())}"
            raise UsageError(problem, where="`set_providers`", hint="make a new session with `providers=`")

    def enable_fallback(self) -> None:
        """Do nothing: the CPU runs the nodes that no other provider takes."""

    def disable_fallback(self) -> None:
        """Do nothing: the CPU runs the nodes that no other provider takes."""

    def io_binding(self) -> IOBinding:
        """A new binding of arrays to inputs and outputs, for `run_with_iobinding`."""
        return IOBinding(engine().OrtValue.ortvalue_from_numpy)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: Any = None) -> None:
        """Run on the bound inputs and fill the bound outputs; raises the errors of `run`."""
        iobinding.fill(self.run(iobinding.names, iobinding.inputs))

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """Like `run`, with the engine's values in the feed and in the result."""
        feed = {name: value.numpy() for name, value in input_dict_ort_values.items()}
        return [engine().OrtValue.ortvalue_from_numpy(array) for array in self.run(output_names, feed)]

    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, np.ndarray],
        callback: Callable[[list[np.ndarray], Any, str], object],
        user_data: Any,
        run_options: Any = None,
    ) -> None:
        """Run in a thread, then call `callback(outputs, user_data, error)`; the error is empty after a success."""

        def work() -> None:
            arrays, problem = list[np.ndarray](), ""
            try:
                arrays = self.run(output_names, input_feed)
            except TtacError as error:
                problem = str(error)
            callback(arrays, user_data, problem)

        Thread(target=work, daemon=True).start()

    def __getattr__(self, name: str) -> Any:
        """Raise UsageError for a call of the engine's session that a bundle cannot do, else AttributeError."""
        if name not in REFUSED:
            raise AttributeError(f"`InferenceSession` has no attribute `{name}`")
        raise UsageError(f"a bundle has no `{name}`: {REFUSED[name]}", where=f"`InferenceSession.{name}`", hint=WAY_OUT)


def _present(providers: Sequence[Any] | None, options: Sequence[Mapping[str, Any]] | None) -> list[Provider]:
    """The providers that the engine has, each with its options.

    As onnxruntime does, a session leaves out a provider that the engine lacks, with a warning.  Raises UsageError for
    an unknown name, RuntimeMissingError if none is left.
    """
    wanted = list(providers or [CPU])
    if options is not None:
        if len(options) != len(wanted):
            raise UsageError(
                f"{len(wanted)} providers have {len(options)} entries of options",
                where="`provider_options`",
                hint="give each provider one dict, `{}` for none",
            )
        wanted = [(name, dict(more)) if more else name for name, more in zip(wanted, options)]
    return present(wanted)


def _described(spec: TensorSpec) -> NodeArg:
    return NodeArg(spec.name, list(spec.shape), f"tensor({TYPES.get(spec.dtype, spec.dtype)})")
