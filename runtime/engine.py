"""onnxruntime behind a seam: sessions, tensors and the settings that make planned memory real.

The only file of the runtime that imports onnxruntime, and only when a bundle is loaded.  Works with 1.18 to 1.31 and
with the last training wheel, 1.19.2.  Why the settings are what they are: `docs/decisions/engine-memory.md`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import platform
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ttac.errors import RuntimeMissingError, TtacError, UnsupportedError
from ttac.runtime.program import Tensor

OLDEST = (1, 18)
DENIED = {
    ("1.21.0", "aarch64"): "it stops with an illegal instruction on some ARM cores (microsoft/onnxruntime#23957)",
    ("1.21.0", "arm64"): "it stops with an illegal instruction on some ARM cores (microsoft/onnxruntime#23957)",
}
"""Engine versions known to be bad, by version and machine, with the reason."""

QUIET = 4
"""The engine's log level that leaves fatal messages only: what fails is raised anyway."""

FAULTY = ["MatMul_BatchNormalization_Fusion", "SkipLayerNormFusion"]
"""Rewrites of the engine that are left out, for what they do in 1.19: the first makes a Gemm of a product of more than
two axes (MatMul, Reshape, BatchNormalization, as in LeViT) and does not load the graph; the second forgets that the
further outputs of a LayerNormalization, its statistics, are read."""

DTYPES = {"float": "float32", "double": "float64"}
"""Element types the engine calls otherwise than numpy."""

ARENA = {"arena_extend_strategy": 0, "max_dead_bytes_per_chunk": 1 << 16, "initial_chunk_size_bytes": 1 << 30}
"""Split a free block that is a little too large (by default a tensor may take one of twice its size), and begin with
one region of address space large enough to stay the only one: neighbours in different regions never merge.  Only what
is used of it becomes memory; where so much is refused, the engine asks for less."""

SMALL = 1 << 16
"""Bytes up to which what a run gives is copied out of the arena."""

_shared_arena = threading.Lock()
_arena_made = False


@dataclass(frozen=True)
class EngineSettings:
    """How the sessions of a bundle are made.

    Attributes:
        threads: threads inside an operator; 0 leaves it to the bundle's target, then to the engine.
        spinning: idle threads poll instead of sleeping; with several sessions they take the cores from each other.
        shared_arena: all sessions of the process allocate from one arena, so that what a forward run frees serves the
            backward run; the arena stays when the sessions go.
        memory_pattern: one block per run, laid out from the run before, instead of one allocation per tensor.
        memory_reuse: keep the room of a tensor that nobody needs for a later one of the same shape, instead of giving
            it back at once; other shapes cannot have it meanwhile.
        file_order: run nodes in the order of the file, as the plan assumes; the engine's own order starts saves and
            recomputations early or ends them late, and holds their tensors meanwhile.
        optimization: "basic", "extended" or "all" (also hardware layouts: faster, but it breaks the file order);
            a graph's own entry in the manifest wins.
        prepacking: keep weights a second time in the layout the kernels like.
    """

    threads: int = 0
    spinning: bool = False
    shared_arena: bool = True
    memory_pattern: bool = False
    memory_reuse: bool = False
    file_order: bool = True
    optimization: str = "all"
    prepacking: bool = True


@dataclass(frozen=True)
class Port:
    """An input or output of a session; `shape` has an int or a symbol's name per axis."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


class Session:
    """One graph, ready to run on tensors."""

    def __init__(self, path: Path, settings: EngineSettings) -> None:
        """Load `path`, with its external data beside it; raises RuntimeMissingError if the engine refuses it."""
        self.path = path
        if settings.shared_arena:
            _make_shared_arena()
        self.native = _open(path, _options(settings))
        self.inputs = {value.name: _port(value) for value in self.native.get_inputs()}
        self.outputs = {value.name: _port(value) for value in self.native.get_outputs()}
        self._whole, self._partial = _run_options(partial=False), _run_options(partial=True)

    def run(self, feed: Mapping[str, Tensor], outputs: Sequence[str]) -> list[Tensor]:
        """The named outputs for `feed`; raises RuntimeMissingError if the engine fails."""
        options = self._whole if len(outputs) == len(self.outputs) else self._partial
        try:
            found = self.native.run_with_ort_values(list(outputs), dict(feed), options)
            return [_released(tensor) for tensor in found]
        except Exception as error:
            raise RuntimeMissingError(
                f"onnxruntime {engine().__version__} failed: {_first_line(error)}",
                where=f"`{self.path.name}`",
                hint="run `ttac doctor`; if memory is short, compile with a smaller `--batch`",
            ) from error


def _released(tensor: Tensor) -> Tensor:
    """The tensor on its own: as the engine hands them out, each output of a run keeps all others of that run alive.

    Without this no residual would be freed before the last one is.  A small one is copied: left in the arena, it would
    split the room that the large ones of the next run need.
    """
    if (view := tensor.numpy()).nbytes <= SMALL:
        return engine().OrtValue.ortvalue_from_numpy(np.array(view))
    alone = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state").OrtValueVector()
    alone.push_back(tensor._ortvalue)
    return engine().OrtValue(alone[0])


class Device:
    """Tensors in the engine's hands, without copies: a tensor of an array shares its memory, and the other way."""

    def tensor(self, array: np.ndarray) -> Tensor:
        """`array`, which must stay unchanged as long as the tensor is used."""
        return engine().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))

    def array(self, tensor: Tensor) -> np.ndarray:
        """A view for reading, valid as long as the tensor is."""
        found: np.ndarray = tensor.numpy()
        return found


def warm_engine() -> None:
    """Import the engine, so that its own memory is told apart from a bundle's; raises RuntimeMissingError."""
    engine()


@cache
def engine() -> Any:
    """The onnxruntime module; raises RuntimeMissingError if it is missing, too old or known to be bad here."""
    try:
        module = _import_without_training()
        version = str(module.__version__)
    except (ImportError, AttributeError) as error:
        raise RuntimeMissingError(
            f"no working onnxruntime: {_first_line(error)}", where="this environment", hint="`pip install onnxruntime`"
        ) from error
    if problem := problem_with(version, platform.machine()):
        raise RuntimeMissingError(
            f"onnxruntime {version} cannot be used: {problem}",
            where="this environment",
            hint="`pip install 'onnxruntime>=1.18,!=1.21.0'`",
        )
    return module


def _import_without_training() -> Any:
    """onnxruntime; the training wheel would look for PyTorch on the way and load it: 2.5 s and 240 MB for nothing.

    It takes the absence of its `onnxruntime.training` for a plain build, so that package is hidden meanwhile.
    """
    training = "onnxruntime.training"
    hide = "onnxruntime" not in sys.modules and training not in sys.modules
    if hide:
        sys.modules[training] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("onnxruntime")
    finally:
        if hide:
            sys.modules.pop(training, None)


def problem_with(version: str, machine: str) -> str:
    """Why that engine version cannot be used on a machine like `aarch64`; empty when it can."""
    release = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if release < OLDEST:
        return "it is older than 1.18"
    return DENIED.get((version, machine.lower()), "")


def plain_session(path: Path, threads: int = 0, *, optimised: bool = True) -> Any:
    """The engine's own session on `path`, with its default settings but quiet, and threads that sleep when idle.

    Not `optimised`, the graph is executed as it is written.  Raises RuntimeMissingError if the engine is missing or
    refuses the file.
    """
    options = engine().SessionOptions()
    if not optimised:
        options.graph_optimization_level = engine().GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = QUIET
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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


def _run_options(*, partial: bool) -> Any:
    """Options of one run; `partial` leaves out what only other outputs need, where the engine can (training builds)."""
    options = engine().RunOptions()
    options.log_severity_level = QUIET
    options.only_execute_path_to_fetches = partial
    return options


def _open(path: Path, options: Any) -> Any:
    """The engine prints about a provider's failure before it raises; that line is caught here, the error is enough."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return engine().InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=FAULTY
            )
    except TtacError:
        raise
    except Exception as error:
        raise RuntimeMissingError(
            f"onnxruntime {engine().__version__} does not load the graph: {_first_line(error)}",
            where=f"`{path}`",
            hint="`ttac doctor` lists what this engine accepts; recompile with a `--target` that fits it",
        ) from error


def _make_shared_arena() -> None:
    """Register the process's arena, once: newer engines would replace it, older ones refuse a second one.

    It may have been registered by other code; then that one is shared.
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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
