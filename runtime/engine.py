"""onnxruntime behind a seam: sessions, tensors and the settings that make planned memory real.

It works with 1.18 to 1.31 and
with the last training wheel, 1.19.2.  `docs/decisions/engine-memory.md` gives the reasons for the settings.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ttac.errors import RuntimeMissingError, TtacError, UnsupportedError
from ttac.runtime.engine_import import engine, first_line, release
from ttac.runtime.hash_check import named
from ttac.runtime.packed_graph import PackedGraph
from ttac.runtime.program.world import Tensor
from ttac.runtime.providers import CPU, Provider, chosen_providers, device_of, divided, only_cpu

QUIET = 4
"""The engine's log level for fatal messages only; a failure is raised anyway."""

FAULTY = ["MatMul_BatchNormalization_Fusion", "SkipLayerNormFusion"]
"""Rewrites of the engine that are disabled, because they are wrong in 1.19.  The first makes a Gemm of a product of
more than two axes (MatMul, Reshape, BatchNormalization, as in LeViT), and the graph does not load.  The second ignores
readers of the further outputs of a LayerNormalization, its statistics."""

DTYPES = {"float": "float32", "double": "float64"}
"""The engine's names of element types -> numpy's names, where they differ."""

ARENA = {"arena_extend_strategy": 0, "max_dead_bytes_per_chunk": 1 << 16, "initial_chunk_size_bytes": 1 << 30}
"""Settings of the shared arena.

The arena splits a free block that is slightly too large (by default a tensor may occupy a block of twice its size).  It
begins with one region of address space that is large enough to stay the only region: neighbours in different regions
never merge.  Only the used part of it becomes memory.  If the system refuses the size, the engine asks for less."""

COPIED_BYTES = 1 << 16
"""Most bytes of a run's output that is copied out of the arena."""

REFUSED_BY_ENGINE = "`ttac doctor` lists the opsets that this engine accepts; recompile with a `--target` that fits it"
REFUSED_BY_PROVIDER = "run the bundle with `--providers cpu`, or update the provider"
"""Hints for a graph that a session does not take."""

_shared_arena = threading.Lock()
_arena_made = False


@dataclass(frozen=True)
class EngineSettings:
    """Settings of the sessions of a bundle.

    Attributes:
        threads: threads inside an operator; 0 means the count of the bundle's target, then the engine's choice.
        spinning: idle threads poll instead of sleeping; threads of several sessions then compete for the cores.
        shared_arena: all sessions of the process allocate from one arena, so that the backward run reuses memory of the
            forward run; the arena outlives the sessions.
        memory_pattern: one block per run, planned from the previous run, instead of one allocation per tensor.
        memory_reuse: reserve the memory of a dead tensor for a later tensor of the same shape, instead of freeing the
            memory at once. Other shapes cannot use this memory in the meantime.
        file_order: run nodes in the order of the file, which the plan assumes. The engine's default order starts saves
            and recomputations early or ends them late, and keeps their tensors in the meantime.
        optimization: "basic", "extended" or "all" (also hardware layouts: faster, but it breaks the file order);
            the entry of a graph in the manifest has priority.
        prepacking: keep a second copy of the weights in the kernels' layout.
        providers: execution providers, best first; the CPU runs the nodes that none of them takes.
        profile: folder for the engine's profiles, `<graph>@<time>.json`, written when the sessions end; empty for none.
        library: shared library of further operators, None for none.
    """

    threads: int = 0
    spinning: bool = False
    shared_arena: bool = True
    memory_pattern: bool = False
    memory_reuse: bool = False
    file_order: bool = True
    optimization: str = "all"
    prepacking: bool = True
    library: Path | None = None
    providers: tuple[Provider, ...] = (CPU,)
    profile: str = ""

    @property
    def device(self) -> str:
        """The engine's name of the memory that holds state, weights and residuals."""
        return device_of(self.providers)


@dataclass(frozen=True)
class Port:
    """An input or output of a session; `shape` has an int or a symbol's name per axis."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


class Session:
    """One graph, ready to run on tensors."""

    def __init__(self, graph: Path | PackedGraph, settings: EngineSettings) -> None:
        """Load a graph, with its external data in the same bundle; raises RuntimeMissingError on failure."""
        self.path = path = graph if isinstance(graph, Path) else graph.path
        if settings.shared_arena:
            _make_shared_arena()
        options = _options(settings)
        _register(options, settings.library)
        if settings.profile:
            options.enable_profiling, options.profile_file_prefix = True, str(Path(settings.profile) / f"{path.stem}@")
        self.native = _open(graph, options, chosen(settings.providers))
        self._device = settings.device
        self.inputs = {value.name: _port(value) for value in self.native.get_inputs()}
        self.outputs = {value.name: _port(value) for value in self.native.get_outputs()}
        self._whole, self._partial = _run_options(partial=False), _run_options(partial=True)

    def run(self, feed: Mapping[str, Tensor], outputs: Sequence[str]) -> list[Tensor]:
        """The named outputs for `feed`; raises RuntimeMissingError if the engine fails."""
        options = self._whole if len(outputs) == len(self.outputs) else self._partial
        try:
            if self._device != "cpu":
                return self._run_bound(feed, outputs, options)
            # The engine's Python method checks the feed again, which takes longer than a small graph.
            values = {name: tensor._ortvalue for name, tensor in feed.items()}
            return [_released(value) for value in self.native._sess.run_with_ort_values(values, list(outputs), options)]
        except Exception as error:
            raise RuntimeMissingError(
                f"onnxruntime {engine().__version__} failed: {first_line(error)}",
                where=f"`{self.path.name}`",
                hint="run `ttac doctor`; if memory is short, compile with a smaller `--batch`",
            ) from error

    def _run_bound(self, feed: Mapping[str, Tensor], outputs: Sequence[str], options: Any) -> list[Tensor]:
        """The named outputs in the memory of the device, which `run_with_ort_values` would copy to the host."""
        binding = self.native.io_binding()
        for name, tensor in feed.items():
            binding.bind_ortvalue_input(name, tensor)
        for name in outputs:
            binding.bind_output(name, self._device)
        self.native.run_with_iobinding(binding, options)
        tensors: list[Tensor] = binding.get_outputs()
        return tensors


def _released(value: Any) -> Tensor:
    """A tensor without its siblings: in the engine's result, each `value` keeps all other outputs of the run alive.

    Without this, no residual is freed before the last residual.  A small tensor is copied: in the arena, it would split
    the space for the large tensors of the next run.
    """
    if (view := value.numpy()).nbytes <= COPIED_BYTES:
        return _wrapped(np.array(view))
    alone = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state").OrtValueVector()
    alone.push_back(value)
    return engine().OrtValue(alone[0])


def _wrapped(array: np.ndarray) -> Tensor:
    """The array as a tensor on the CPU, without a copy, in half the time of `OrtValue.ortvalue_from_numpy`."""
    native, place, python = _cpu_tensors()
    return python(native(array, place), array)


@cache
def _cpu_tensors() -> tuple[Any, Any, Any]:
    """The engine's function that wraps an array, the CPU as its device, and the class for the result."""
    python = engine().OrtValue  # first: the import of a part would import the engine with its training package
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    place = state.OrtDevice(state.OrtDevice.cpu(), state.OrtDevice.default_memory(), 0)
    return state.OrtValue.ortvalue_from_numpy, place, python


class EngineDevice:
    """Conversion between arrays and tensors, on the CPU without copies: both share the memory.

    Args:
        place: the engine's name of the memory in which `resident` puts tensors.
    """

    def __init__(self, place: str = "cpu") -> None:
        self._place = place

    def resident(self, array: np.ndarray) -> Tensor:
        """`array` as a tensor that many runs read: in the memory of the device."""
        if self._place == "cpu":
            return self.tensor(array)
        return engine().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._place, 0)

    def tensor(self, array: np.ndarray) -> Tensor:
        """`array` as a tensor; the array must stay unchanged while the tensor is used."""
        return _wrapped(np.ascontiguousarray(array).reshape(array.shape))

    def array(self, tensor: Tensor) -> np.ndarray:
        """A view for reading, valid while the tensor exists."""
        view: np.ndarray = tensor.numpy() if (own := _own_array(tensor)) is None else own
        return view

    def owns(self, tensor: Tensor) -> bool:
        """Whether the tensor lies in an array outside the engine's arena."""
        return _own_array(tensor) is not None


def _own_array(tensor: Tensor) -> np.ndarray | None:
    """The array that `ortvalue_from_numpy` made the tensor of; asking the engine for a view takes ten times as long."""
    array: np.ndarray | None = getattr(tensor, "_numpy_obj", None)
    return array


def warm_engine() -> None:
    """Import the engine, so that a measurement separates its memory from a bundle's; raises RuntimeMissingError."""
    engine()


def present(wanted: Sequence[Provider]) -> list[Provider]:
    """Return the providers that the engine has, under its names, with a warning that names the others.

    Raises UsageError for an unknown name, RuntimeMissingError if none is left.
    """
    there, missing = divided(wanted, engine().get_available_providers())
    if there and missing:
        logging.getLogger("ttac").warning("the engine has no %s; other providers run", ", ".join(missing))
    return chosen(there or wanted)


def chosen(providers: Sequence[Provider]) -> list[Provider]:
    """Return the providers under the engine's names; raises the errors of `chosen_providers`."""
    module = engine()
    return chosen_providers(providers, module.get_available_providers(), str(module.__version__))


def open_session(
    path: Path | PackedGraph, threads: int = 0, *, optimised: bool = True, library: Path | None = None
) -> Any:
    """Return the engine's own session on a graph: default settings, but quiet, and with threads that sleep when idle.

    With `optimised=False` the engine executes the unchanged graph.  `library` is a shared library of further operators.
    Raises RuntimeMissingError if the engine is missing, or refuses the file or the library.
    """
    options = engine().SessionOptions()
    if not optimised:
        options.graph_optimization_level = engine().GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = QUIET
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    _register(options, library)
    return _open(path, options)


def _options(settings: EngineSettings) -> Any:
    module = engine()
    options = module.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = settings.memory_pattern
    options.enable_mem_reuse = settings.memory_reuse
    order, level = module.ExecutionOrder, module.GraphOptimizationLevel
    options.execution_order = order.PRIORITY_BASED if settings.file_order else order.DEFAULT
    options.graph_optimization_level = getattr(level, f"ORT_ENABLE_{settings.optimization.upper()}")
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spinning)))
    options.add_session_config_entry("session.use_env_allocators", str(int(settings.shared_arena)))
    options.add_session_config_entry("session.disable_prepacking", str(int(not settings.prepacking)))
    return options


def _register(options: Any, library: Path | None) -> None:
    """Let the sessions of `options` take operators from `library`; raises RuntimeMissingError if the engine cannot."""
    if library is None:
        return
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:
        raise RuntimeMissingError(
            f"onnxruntime {engine().__version__} does not load the operator library: {first_line(error)}",
            where=f"`{library}`",
            hint='`pip install --force-reinstall ttac-kernels`, or load the bundle with `form="blocked"`',
        ) from error


def _run_options(*, partial: bool) -> Any:
    """Options of one run; with `partial`, training builds skip the nodes that only other outputs need."""
    options = engine().RunOptions()
    options.log_severity_level = QUIET
    options.only_execute_path_to_fetches = partial
    return options


def _open(graph: Path | PackedGraph, options: Any, providers: Sequence[Provider] = (CPU,)) -> Any:
    """The engine's session; the lines that the engine prints before it raises are suppressed."""
    path = graph if isinstance(graph, Path) else graph.path
    try:
        model = _model(graph, options)
        with contextlib.redirect_stdout(io.StringIO()):
            return engine().InferenceSession(model, options, providers=list(providers), disabled_optimizers=FAULTY)
    except TtacError:
        raise
    except Exception as error:
        raise RuntimeMissingError(
            f"onnxruntime {engine().__version__} does not load the graph: {first_line(error)}",
            where=f"`{named(path)}`",
            hint=REFUSED_BY_ENGINE if only_cpu(providers) else REFUSED_BY_PROVIDER,
        ) from error


def _model(graph: Path | PackedGraph, options: Any) -> str | bytes:
    """The graph as a session of `options` takes it.

    A graph in a bundle of one file comes as bytes.  1.21 and later map its weights, from a folder that the options
    name.  Older engines cannot optimise such a graph, so they get copies of the weights.
    """
    if isinstance(graph, Path):
        return str(graph)
    if release(str(engine().__version__)) < (1, 21):
        return graph.inlined()
    bundle = Path(os.path.realpath(graph.bundle))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.parent))
    return graph.located(bundle.name)


def _make_shared_arena() -> None:
    """Register the arena of the process once: newer engines would replace it, older engines refuse a second arena.

    If other code has registered an arena, the sessions share that arena.
    """
    global _arena_made
    with _shared_arena:
        if not _arena_made:
            state = engine()
            place = state.OrtMemoryInfo("Cpu", state.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, state.OrtMemType.DEFAULT)
            with contextlib.suppress(RuntimeError):
                state.create_and_register_allocator(place, state.OrtArenaCfg(ARENA))
            _arena_made = True


def _port(value: Any) -> Port:
    kind = re.fullmatch(r"tensor\((\w+)\)", value.type)
    if kind is None:
        raise UnsupportedError(f"`{value.name}` is a {value.type}, not a tensor", hint="recompile the bundle")
    shape = tuple(size if isinstance(size, int) else str(size or "") for size in value.shape)
    return Port(value.name, DTYPES.get(kind[1], kind[1]), shape)
