"""The same bundles on two machines: compiled and stepped on the first, stepped and compared on the second.

    python -m benchmarks.other_machine write DIR --target raspberry-pi-4
    python benchmarks/other_machine.py check DIR    # on the second; needs numpy, safetensors and onnxruntime only

`check` prints a Markdown table, and exits with 1 where logits differ by more than rounding explains.  `docs/arm64.md`
keeps this table, and describes how an x86-64 machine emulates an arm64 machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import ttac
from ttac.runtime.engine_import import engine

DEMO = Path(ttac.__file__).resolve().parent / "demo"
UNFOLDED, FOLDED, GROUP, VIT = (f"fashion_{name}" for name in ("resnet_bn_unfolded", "resnet_bn", "resnet_gn", "vit"))
BUNDLES: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    *((UNFOLDED, method, {}) for method in "source bn tent eata sar surgeon leantta lame".split()),
    (FOLDED, "tent", {}),
    (GROUP, "sar", {}),
    (VIT, "sar", {}),
    (VIT, "surgeon", {}),
    (UNFOLDED, "tent", {"train": "all"}),
    (UNFOLDED, "surgeon", {"settings": {"select": "levels"}}),
    (UNFOLDED, "surgeon", {"settings": {"select": "threshold"}}),
    (UNFOLDED, "surgeon", {"settings": {"cr": True}}),
    *((UNFOLDED, method, {"quantize": "int8"}) for method in "source bn leantta tent".split()),
)
"""Network, method and further arguments of `ttac.compile`."""
BATCH, STEPS = 8, 6
CORRUPTION = "gaussian_noise"
FLOAT, INT8 = 1e-4, 2e-2
"""Largest difference of logits relative to the largest logit: float32 rounding, and values one 8-bit step apart."""


def write(folder: Path, target: str) -> None:
    """Write bundles for `target`, the samples, and the logits of this machine into an empty or new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(DEMO / "fashion_stream.npz") as file:
        x = file[CORRUPTION][: BATCH * STEPS].astype(np.float32) / np.float32(255)
    np.save(folder / "x.npy", x)
    for net, method, choices in BUNDLES:
        said = [
            f"{key}={value}" for part in choices.values() if isinstance(part, Mapping) for key, value in part.items()
        ]
        words = [str(value) for value in choices.values() if not isinstance(value, Mapping)]
        name = " ".join([net, method, *said, *words])
        ttac.compile(DEMO / f"{net}.onnx", method=method, target=target, batch=BATCH, output=folder / f"{name}.ttac",
                     calibration=DEMO / "fashion_calibration.npz", **choices)  # fmt: skip
        np.save(folder / f"{name}.npy", logits(folder / f"{name}.ttac", x))
        print(name, file=sys.stderr, flush=True)
    (folder / "written.json").write_text(json.dumps(machine()))


def logits(bundle: Path, x: np.ndarray) -> np.ndarray:
    """Return the logits of consecutive steps, [steps, batch, classes]."""
    adapter = ttac.load(bundle, threads=1)
    return np.stack([np.array(adapter.step(part)) for part in x.reshape(STEPS, BATCH, *x.shape[1:])])


def machine() -> str:
    """Return processor, engine and Python version as text."""
    return f"{platform.machine()}, onnxruntime {engine().__version__}, Python {platform.python_version()}"


def check(folder: Path) -> Iterator[tuple[bool, str]]:
    """Yield for each bundle whether its logits are within the bounds, and a row of the table."""
    x = np.load(folder / "x.npy")
    for path in sorted(folder.glob("*.ttac")):
        expected, actual = np.load(folder / f"{path.stem}.npy"), logits(path, x)
        away = np.abs(actual - expected).reshape(STEPS, -1).max(1) / np.abs(expected).max()
        differ = int((actual.argmax(-1) != expected.argmax(-1)).sum())
        good = bool(np.all(away <= (INT8 if path.stem.endswith("int8") else FLOAT)))
        yield good, f"| {path.stem} | {away[0]:.0e} | {away.max():.0e} | {differ} of {len(x)} |"


def main() -> int:
    """Write or check; return 1 where numbers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("write", "check"))
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--target", default="raspberry-pi-4")
    asked = parser.parse_args()
    if asked.verb == "write":
        write(asked.folder, asked.target)
        return 0
    print(f"Written on {json.loads((asked.folder / 'written.json').read_text())}; checked on {machine()}.\n")
    print("| bundle | first step off by | all steps | predictions that differ |\n| --- | --- | --- | --- |")
    all_good = True
    for good, row in check(asked.folder):
        print(row, flush=True)
        all_good = all_good and good
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
