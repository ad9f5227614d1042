"""The machine and the versions that measured figures hold for."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("ttac", "onnxruntime-training-cpu", "onnxruntime", "onnx", "torch", "numpy")


def about(threads: int) -> dict[str, str]:
    """Return the date, the machine, the versions and the threads that figures hold for."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(names, platform.processor())
    versions = {package.name.lower(): package.version for package in metadata.distributions() if package.name}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores of {processor}",
        "packages": ", ".join(f"{package} {versions[package]}" for package in PACKAGES if package in versions),
        "threads": str(threads),
    }
