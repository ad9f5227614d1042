"""Images that arrive while a model runs: a folder that fills, a video file, or a camera.

A video needs PyAV or OpenCV (`cv2`); a folder needs Pillow only.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ttac.errors import RuntimeMissingError, UsageError
from ttac.samples.image_folder import SUFFIXES
from ttac.samples.images import fitted_image, read_image

POLL = 0.2
"""Seconds between two looks at a folder."""
READERS = ("av", "cv2")
"""Packages that read videos: PyAV and OpenCV."""
HINT = "give a folder, a video file, or a camera such as `camera:0`"

Size = tuple[int, int, int]
Image = np.ndarray | None


def live_images(source: str, size: Size, say: Callable[[str], object] = lambda line: None) -> Iterator[Image]:
    """Yield images, uint8 [C, H, W] of `size`, as they arrive; None where nothing new is there.

    A folder never ends; a video ends after its last frame.  `say` gets a sentence on each file that is no image.
    Raises UsageError for another source, RuntimeMissingError where a video needs a package.
    """
    camera = re.fullmatch(r"camera:(\d+)", source)
    if camera is None and os.path.isdir(source):
        return _images_of_folder(Path(source), size, say)
    if camera is None and not os.path.isfile(source):
        raise UsageError("there is no such source", where=f"`{source}`", hint=HINT)
    reader = next((name for name in (READERS[::-1] if camera else READERS) if find_spec(name)), None)
    if reader is None:
        raise RuntimeMissingError(
            "a video needs PyAV or OpenCV", where=f"`{source}`", hint="`pip install 'ttac[watch]'`"
        )
    frames = _frames_of_av if reader == "av" else _frames_of_opencv
    return (fitted_image(frame, size) for frame in frames(source, None if camera is None else int(camera[1])))


def live_batches(images: Iterator[Image], size: int, smallest: int, idle: float | None = None) -> Iterator[np.ndarray]:
    """Yield batches [n, C, H, W] of `size` images; the last one may be smaller, but not below `smallest`.

    The stream ends with the images, or after `idle` seconds without a new one; None waits for ever.
    """
    batch: list[np.ndarray] = []
    last = time.monotonic()
    for image in images:
        if image is None:
            if idle is not None and time.monotonic() - last >= idle:
                break
            time.sleep(POLL)
            continue
        batch.append(image)
        last = time.monotonic()
        if len(batch) == size:
            yield np.stack(batch)
            batch = []
            last = time.monotonic()
    if len(batch) >= smallest:
        yield np.stack(batch)


def _images_of_folder(folder: Path, size: Size, say: Callable[[str], object]) -> Iterator[Image]:
    """The images of a folder and its sub-folders, in the order of their names at each look; files that grow wait."""
    seen: set[Path] = set()
    sizes: dict[Path, int] = {}
    while True:
        found = {file: _bytes_of(file) for file in _image_files(folder)}
        ready = [file for file, count in found.items() if file not in seen and count and sizes.get(file) == count]
        sizes = found
        for file in ready:
            seen.add(file)
            try:
                image = read_image(file, size)
            except UsageError as error:
                say(f"note: `{file.name}` is left out: {error.problem}")
                continue
            yield image
        if not ready:
            yield None


def _image_files(folder: Path) -> list[Path]:
    """Files with the ending of an image; a sub-folder that disappears meanwhile has none."""
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES)


def _bytes_of(file: Path) -> int:
    """Size of a file that may disappear meanwhile; 0 for one that is not there."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _frames_of_av(source: str, camera: int | None) -> Iterator[Any]:
    import av

    try:
        name, form = (source, None) if camera is None else (f"/dev/video{camera}", "v4l2")
        with av.open(name, format=form) as container:
            for frame in container.decode(video=0):
                yield frame.to_image()
    except (OSError, IndexError, av.error.FFmpegError) as error:
        raise UsageError(f"cannot read the video: {error}", where=f"`{source}`", hint=HINT) from error


def _frames_of_opencv(source: str, camera: int | None) -> Iterator[Any]:
    import cv2
    from PIL import Image

    capture = cv2.VideoCapture(source if camera is None else camera)
    try:
        if not capture.isOpened():
            raise UsageError("cannot open the video", where=f"`{source}`", hint=HINT)
        while (read := capture.read())[0]:
            yield Image.fromarray(read[1][..., ::-1])
    finally:
        capture.release()
