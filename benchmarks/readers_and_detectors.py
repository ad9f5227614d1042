"""Errors of methods on readers of text and detectors: `python -m benchmarks.readers_and_detectors`.

Two small nets, which `python -m benchmarks.train_small_nets` trains, and files with the weights that people install.
The samples are drawn, so their labels are exact.  Cells are kept in `--folder`, and a second run continues.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
import skimage
from PIL import Image

import ttac
from benchmarks.drawn import SHIFTS, line, lines, shapes, shifted
from benchmarks.real_files import FILES, fetch
from ttac.evaluation.boxes import boxes_of
from ttac.evaluation.watch import Watch

METHODS = ("source", "bn", "leantta", "tent", "sar", "surgeon")
BLENDED = "bn:statistics=blend:prior=256"
"""Statistics of the batch beside those of the source, which count as 256 samples."""
NETS = Path(__file__).parent / "small_nets"
DOWNLOADS = Path(tempfile.gettempdir()) / "ttac-real-files"
SURE = 0.4
"""Least score of a box that becomes a label."""
WORDS = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
"""Source of words for readers of English."""

Samples = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""Number and seed -> uint8 images [n, C, H, W] and labels."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, its data and the options of its compile.

    Attributes:
        name, about: name and description on the page.
        path: function that returns the ONNX file.
        samples: draws images and labels.
        scale: function of uint8 images that returns the input of the model.
        count, batch: samples of each shift, and of a step.
        strength: of the shifts.
        methods: compared methods.
        options: of `ttac.compile`.
    """

    name: str
    about: str
    path: Callable[[], Path]
    samples: Samples
    scale: Callable[[np.ndarray], np.ndarray]
    count: int = 512
    batch: int = 32
    strength: float = 1.0
    methods: tuple[str, ...] = METHODS
    options: Mapping[str, Any] = field(default_factory=dict)


def unit(images: np.ndarray) -> np.ndarray:
    """Return bytes in the range 0 to 1."""
    return images.astype(np.float32) / 255


def symmetric(images: np.ndarray) -> np.ndarray:
    """Return bytes in the range -1 to 1, in three equal channels."""
    return np.repeat(images, 3 // images.shape[1], 1).astype(np.float32) / 127.5 - 1


def real(name: str) -> Callable[[], Path]:
    """Return a function that downloads the file of that name."""

    def path() -> Path:
        DOWNLOADS.mkdir(exist_ok=True)
        return fetch(next(file for file in FILES if file.name == name), DOWNLOADS)

    return path


def words(count: int, seed: int) -> list[str]:
    """Return two or three words of the licence in a row."""
    known, random = WORDS.split(), np.random.default_rng(seed)
    starts = random.integers(0, len(known) - 3, count)
    return [" ".join(known[start : start + int(random.integers(2, 4))])[:24] for start in starts]


def english(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lines of words, uint8 [count, 1, 48, 256], and their classes in the file of PP-OCR."""
    listed = {p.key: p.value for p in onnx.load(real("ch_PP-OCRv4_rec_infer")()).metadata_props}["character"]
    numbers = {character: place for place, character in enumerate(listed.split("\n"), 1)} | {" ": 6624}
    random, texts = np.random.default_rng(seed + 1), words(count, seed)
    labels = np.full((count, 24), -1, np.int64)
    for row, text in zip(labels, texts, strict=True):
        row[: len(text)] = [numbers[character] for character in text]
    return np.stack([line(text, random, (48, 256)) for text in texts])[:, None], labels


def turned(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lines of words, uint8 [count, 1, 48, 192], of which half are upside down, and which: class 1."""
    random = np.random.default_rng(seed + 1)
    images = np.stack([line(text, random, (48, 192)) for text in words(count, seed)])[:, None]
    labels = random.integers(0, 2, count)
    images[labels == 1] = images[labels == 1][:, :, ::-1, ::-1]
    return images, labels


def captchas(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images of the package captcha, uint8 [count, 3, 60, 160], and the classes of their four characters."""
    from captcha.image import ImageCaptcha

    known = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    random, maker = np.random.default_rng(seed), ImageCaptcha(160, 60)
    labels = random.integers(0, len(known), (count, 4))
    texts = ["".join(known[each] for each in row) for row in labels]
    chance = Random(seed)
    drawn = SimpleNamespace(randbelow=chance.randrange, choice=chance.choice, randbits=chance.getrandbits)
    with patch("captcha.image.secrets", drawn):
        images = [np.asarray(maker.generate_image(text).convert("RGB"))[:, :, ::-1] for text in texts]
    return np.stack(images).transpose(0, 3, 1, 2), labels


def faces(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one or two faces on smooth backgrounds, uint8 [count, 3, 160, 160], and the boxes that 320n finds there.

    The face is a part of `astronaut.png`, a public picture of NASA that scikit-image ships.  The boxes are no truth:
    they are the answers of the source model on these images, `SURE` or surer.
    """
    whole = Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB").crop((120, 0, 330, 210))
    random, side = np.random.default_rng(seed), 160
    images = []
    for _ in range(count):
        spots = Image.fromarray(random.integers(40, 216, (4, 4, 3)).astype(np.uint8))
        image, half = spots.resize((side, side), Image.Resampling.BICUBIC), side // 2
        for place in range(int(random.integers(1, 3))):
            size = int(random.uniform(0.35, 0.5) * side)
            face = whole.resize((size, size))
            face = face.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else face
            left = int(random.integers(0, half - size + 1))
            image.paste(face, (left + half * place, int(random.integers(0, side - size))))
        images.append(np.asarray(image))
    drawn = np.stack(images).transpose(0, 3, 1, 2)
    session = ort.InferenceSession(str(real("320n")()), providers=["CPUExecutionProvider"])
    output = session.run(None, {session.get_inputs()[0].name: unit(drawn)})[0]
    boxes = boxes_of(np.ascontiguousarray(output[:, :4].transpose(0, 2, 1)), np.ascontiguousarray(output[:, 4:]))
    return drawn, np.where(boxes[:, :, 5:] >= SURE, boxes[:, :, :5], -1)[:, :8]


SUBJECTS = (
    Subject(name="small reader", about="lines of 4 to 7 characters, character error", path=lambda: NETS / "reader.onnx",
            samples=lines, scale=unit),
    Subject(name="small detector", about="discs, squares and triangles, 1 - mAP", path=lambda: NETS / "detector.onnx",
            samples=shapes, scale=unit),
    Subject(name="PP-OCRv4 recogniser", about="English words, character error (rapidocr-onnxruntime)",
            path=real("ch_PP-OCRv4_rec_infer"), samples=english, scale=symmetric, count=96, batch=16, strength=1.1,
            methods=(*METHODS, BLENDED, BLENDED.replace("bn", "tent")), options={"shape": "3x48x256"}),
    Subject(name="PP-OCR direction", about="lines upside down or not, error (rapidocr-onnxruntime)",
            path=real("ch_ppocr_mobile_v2.0_cls_infer"), samples=turned, scale=symmetric, count=512, batch=32,
            methods=(*METHODS, BLENDED, "leantta:lambda=0.25"), options={"shape": "3x48x192"}),
    Subject(name="captcha-whisperer", about="four characters, character error (captcha-whisperer)",
            path=real("captcha_crnn"), samples=captchas, scale=lambda x: x.astype(np.float32), count=128, batch=16,
            methods=(*METHODS, BLENDED), options={"head": "ctc"}),
    Subject(name="nudenet 320n", about="faces, 1 - mAP against the source on clean images (nudenet)",
            path=real("320n"), samples=faces, scale=unit, count=64, batch=16, methods=(*METHODS, BLENDED),
            options={"shape": "3x160x160"}),
)  # fmt: skip


def evaluated(subject: Subject, folder: Path) -> list[str]:
    """Return the section of the page."""
    images, labels = subject.samples(subject.count, 7)
    data = {shift: subject.scale(shifted(images, shift, strength=subject.strength)) for shift in SHIFTS}
    calibration = subject.scale(subject.samples(128, 5)[0])
    found = ttac.evaluate(
        subject.path(),
        {**data, "labels": labels},
        methods=subject.methods,
        protocols=["reset-each-shift"],
        batch=subject.batch,
        options={**subject.options, "calibration": calibration},
        output=folder / subject.name.replace(" ", "-"),
        watch=Watch(say=print),
        threads=1,
    )
    (table,) = found.tables()
    head = f"{subject.name}: {subject.about}; {subject.count} samples of each shift, {subject.batch} a step"
    lines_ = [
        "",
        f"## {subject.name}",
        "",
        f"{head}. {table.column.capitalize()}:".replace(f"{subject.name}: ", ""),
        "",
    ]
    lines_ += [f"| shift | {' | '.join(f'`{m}`' for m in table.methods)} |", f"|---|{'---:|' * len(table.methods)}"]
    for shift, row in {**table.errors, "mean": table.means}.items():
        cells = [f"{100 * value:.1f}" if (value := row.get(m)) is not None else "-" for m in table.methods]
        lines_.append(f"| {shift} | {' | '.join(cells)} |")
    reasons = {each.cell.subject.method: each.reason.problem for each in found.missing}
    return [*lines_, *(f"\n`{method}` is missing: {reason}." for method, reason in reasons.items())]


def main() -> int:
    """Evaluate the named subjects, by default all, and print the tables of `docs/readers-and-detectors.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ttac-readers-and-detectors")
    parser.add_argument("names", nargs="*")
    choices = parser.parse_args()
    sections = [
        line
        for subject in SUBJECTS
        if not choices.names or subject.name in choices.names
        for line in evaluated(subject, choices.folder)
    ]
    print("\n".join(sections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
