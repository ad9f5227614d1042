"""Prove that a refactoring changed nothing: the digests of a set of bundles, compared with the committed ones.

    python -m benchmarks.replay            compare with benchmarks/replay.json; exit 1 where a bundle differs
    python -m benchmarks.replay --write    write benchmarks/replay.json

A digest covers the graphs, the weights, the initial state and the manifest without its measured figures.  The bytes
also depend on the processor and on the versions of onnx, onnx-ir and onnxsim, so digests are compared on the machine
that wrote them: check out the commit before, write, check out the commit after, compare.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ttac
from ttac.errors import UnsupportedError

RECORD = Path(__file__).with_name("replay.json")
DEMO = Path(ttac.__file__).parent / "demo"
NETS = ("fashion_resnet_bn", "fashion_resnet_gn", "fashion_vit")
METHODS = ("tent", "surgeon", "sar", "leantta")
MORE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fashion_resnet_bn", "bn", {}),
    ("fashion_resnet_bn", "lame", {}),
    ("fashion_resnet_bn", "eata", {}),
    ("fashion_resnet_bn", "dropit", {}),
    ("fashion_resnet_bn", "surgeon", {"settings": {"cr": True, "css": True}}),
    ("fashion_resnet_bn", "surgeon", {"train": "all", "settings": {"select": "levels"}}),
    ("fashion_resnet_bn", "leantta", {"quantize": "int8"}),
    ("fashion_vit", "eata", {"memory_budget": "16MiB"}),
)
"""Net, method and options of further bundles, so that every room and every method takes part."""
MEASURED = ("memory", "verified", "executed_on")
"""Entries of the manifest that hold measurements."""


def digest(folder: Path) -> str:
    """SHA-256 of the content of a bundle, as hexadecimal text, without its measurements."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for entry in MEASURED:
        manifest.pop(entry)
    manifest["files"].pop("report.json")
    content = json.dumps(manifest, sort_keys=True).encode()
    for path in sorted(folder.iterdir()):
        if path.name not in ("manifest.json", "report.json"):
            content += path.name.encode() + hashlib.sha256(path.read_bytes()).digest()
    return hashlib.sha256(content).hexdigest()


def compiled(net: str, method: str, options: dict[str, Any], folder: Path) -> str:
    """The digest of the bundle of a shipped net, or the reason why the method refuses the net."""
    calibration = DEMO / "fashion_calibration.npz"
    try:
        ttac.compile(DEMO / f"{net}.onnx", method=method, batch=16, calibration=calibration, output=folder, **options)
    except UnsupportedError as error:
        return f"refused: {type(error).__name__}"
    return digest(folder)


def cases() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Net, method and options of every bundle, by the name that the record uses."""
    found = [*((net, method, {}) for net in NETS for method in METHODS), *MORE]
    return {
        " ".join([net, method, json.dumps(options) if options else ""]).strip(): (net, method, options)
        for net, method, options in found
    }


def main() -> int:
    """Compile every pair, and compare or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the record instead of comparing with it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = {case: compiled(*what, Path(name) / f"{i}.ttac") for i, (case, what) in enumerate(cases().items())}
    if arguments.write:
        RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    different = [pair for pair in found if found[pair] != record.get(pair)]
    for pair in found:
        print(f"{'DIFFERENT' if pair in different else 'identical':<10} {pair:<60} {found[pair][:16]}")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
