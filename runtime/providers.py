"""Execution providers of the engine: short names, the check of their presence, and the memory of each.

The engine gives each node to the first provider that takes it.  The CPU takes every node, so it is always the last.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Union

from ttac.errors import RuntimeMissingError, UsageError

Provider = Union[str, tuple[str, Mapping[str, Any]]]
"""A short name or the engine's name, alone or with the provider's options."""

CPU = "CPUExecutionProvider"
NAMES = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "dml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "acl": "ACLExecutionProvider",
}
"""Short name -> the engine's name."""

PACKAGES = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "DmlExecutionProvider": "onnxruntime-directml",
    "QNNExecutionProvider": "onnxruntime-qnn",
}
"""The engine's name of a provider -> package that has the provider."""

DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
"""Provider with memory of its own -> the engine's name of that memory.  State, weights and residuals stay there."""


def parse_providers(text: str) -> tuple[str, ...]:
    """Return the names in `cuda,cpu`; raises UsageError for an empty name."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise UsageError("a name of a provider is empty", where="`--providers`", hint="write `--providers cuda,cpu`")
    return names


def chosen_providers(wanted: Sequence[Provider], available: Sequence[str], version: str) -> list[Provider]:
    """Return `wanted` under the engine's names, with the CPU at the end.

    Args:
        available: names of the providers that the engine has.
        version: of the engine, for messages.

    Raises UsageError for an unknown name, RuntimeMissingError for a provider that the engine lacks.
    """
    chosen: list[Provider] = []  # each once: a list with the CPU may get the CPU again
    for entry in wanted:
        name, options = (entry, None) if isinstance(entry, str) else entry
        full = _full_name(name)
        if full not in available:
            raise _missing(full, available, version)
        if full not in map(provider_name, chosen):
            chosen.append(full if options is None else (full, options))
    return chosen if CPU in map(provider_name, chosen) else [*chosen, CPU]


def divided(wanted: Sequence[Provider], available: Sequence[str]) -> tuple[list[Provider], list[str]]:
    """Return the providers that the engine has, and the names of the others; raises UsageError for an unknown name."""
    present = [entry for entry in wanted if _full_name(provider_name(entry)) in available]
    return present, [_full_name(provider_name(entry)) for entry in wanted if entry not in present]


def provider_name(provider: Provider) -> str:
    """Return the name in an entry with or without options."""
    return provider if isinstance(provider, str) else provider[0]


def device_of(providers: Sequence[Provider]) -> str:
    """Return the engine's name of the memory in which the first of `providers` keeps tensors: "cpu" or another."""
    return DEVICES.get(_full_name(provider_name(providers[0])), "cpu") if providers else "cpu"


def only_cpu(providers: Sequence[Provider]) -> bool:
    """Whether the CPU alone runs the graphs."""
    return all(_full_name(provider_name(provider)) == CPU for provider in providers)


def _full_name(name: str) -> str:
    if name in NAMES.values():
        return name
    if name.lower() in NAMES:
        return NAMES[name.lower()]
    close = difflib.get_close_matches(name.lower(), NAMES, 1)
    hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(NAMES)}"
    raise UsageError(f"there is no provider `{name}`", where="`providers`", hint=hint)


def _missing(full: str, available: Sequence[str], version: str) -> RuntimeMissingError:
    """The error for a provider that the engine lacks."""
    names = ", ".join(f"`{name}`" for name in available)
    install = f"`pip install {PACKAGES[full]}` in place of `onnxruntime`" if full in PACKAGES else "build onnxruntime"
    return RuntimeMissingError(
        f"onnxruntime {version} has no `{full}`, only {names}",
        where="`providers`",
        hint=f"{install}, or leave the provider out",
    )
