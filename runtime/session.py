"""A replacement for `onnxruntime.InferenceSession` that adapts to its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttac.errors import UsageError
from ttac.runtime.adapter import Adapter
from ttac.runtime.records import TensorSpec

TYPES = {"float32": "float", "float64": "double"}
"""numpy's dtype names -> ONNX Runtime's names, where they differ."""

PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class NodeArg:
    """An input or output as ONNX Runtime describes it: the batch axis is a symbol, `type` is like `tensor(float)`."""

    name: str
    shape: list[int | str]
    type: str


class InferenceSession:
    """`session.run(None, {"x": x})` as before; each call is one `adapter.step`.

    The session of the source model is `onnxruntime.InferenceSession("model.onnx")`; this session takes the bundle's
    path. With `adapt=False` it predicts with the unchanged state.  Use `adapter` to reset, save and restore.

    Args:
        path_or_bytes: the bundle's folder.
        sess_options: only its `intra_op_num_threads` counts; the bundle decides the other session options.
        providers: must include the CPU provider, on which bundles run.
        provider_options: not used.
        adapt: whether `run` adapts; the attribute may be changed at any time.
        threads: as in `ttac.load`.
        form: as in `ttac.load`.

    Raises the errors of `ttac.load`, and UsageError for providers without the CPU.
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
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers or [PROVIDER]]
        if PROVIDER not in names:
            raise UsageError(
                f"bundles run on the CPU, and `providers` has only {', '.join(names)}",
                where="`providers=`",
                hint=f"add `{PROVIDER}`",
            )
        if threads is None and sess_options is not None:
            threads = sess_options.intra_op_num_threads or None
        self.adapter = Adapter(path_or_bytes, threads=threads, form=form)
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

    def get_providers(self) -> list[str]:
        """Name of the provider that runs the bundle."""
        return [PROVIDER]


def _described(spec: TensorSpec) -> NodeArg:
    return NodeArg(spec.name, list(spec.shape), f"tensor({TYPES.get(spec.dtype, spec.dtype)})")
