"""Build the web page into a folder that any static server can serve, with everything it needs offline.

    npm ci --prefix consumers/js
    python examples/web/build.py build/web
    python -m http.server --bind 127.0.0.1 --directory build/web 8000

`--bundle` takes another bundle with images as input; without it, the script compiles the shipped model with TENT.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import ttac
from ttac import demo

HERE = Path(__file__).resolve().parent
READER = HERE.parents[1] / "consumers" / "js"
ENGINE = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
CLASSES = "T-shirt,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
BATCH, IMAGES = 32, 512


def compile_demo(folder: Path) -> None:
    """Compile the shipped model with TENT for batches of `BATCH`."""
    calibration = demo.file("fashion_calibration.npz")
    pixels = {"range": [0, 1]}
    model = demo.file("fashion_resnet_bn.onnx")
    ttac.compile(model, method="tent", batch=BATCH, calibration=calibration, pixels=pixels, output=folder)


def write_streams(folder: Path) -> None:
    """Write the first `IMAGES` images of each corruption as safetensors, and the names of streams and classes."""
    with np.load(demo.file("fashion_stream.npz"), allow_pickle=False) as arrays:
        labels = arrays["labels"][:IMAGES]
        names = [name for name in arrays.files if name not in ("labels", "about")]
        for name in names:
            save_file({"images": arrays[name][:IMAGES], "labels": labels}, folder / f"{name}.safetensors")
    facts = {"streams": names, "classes": CLASSES, "batch": BATCH}
    (folder / "streams.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")


def build(folder: Path, bundle: Path | None = None) -> None:
    """Write the site; raises FileNotFoundError without the packages of npm."""
    for part in ("streams", "engine"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in ENGINE:
        shutil.copy(READER / "node_modules" / "onnxruntime-web" / "dist" / name, folder / "engine")
    shutil.copytree(READER / "src", folder / "reader", dirs_exist_ok=True)
    for name in ("index.html", "page.js", "images.js", "style.css"):
        shutil.copy(HERE / name, folder)
    if bundle is not None:
        shutil.copytree(bundle, folder / "model.ttac", dirs_exist_ok=True)
    else:
        compile_demo(folder / "model.ttac")
    write_streams(folder / "streams")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the web page.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", type=Path)
    arguments = parser.parse_args()
    build(arguments.folder, arguments.bundle)
    print(f"python -m http.server --bind 127.0.0.1 --directory {arguments.folder} 8000")
    return 0


if __name__ == "__main__":
    sys.exit(main())
