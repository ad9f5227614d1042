"""Boxes of a detector: those that a non-maximum suppression keeps, and COCO's mean average precision."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from functools import lru_cache
from typing import Any

import numpy as np

from ttac.errors import RuntimeMissingError

KEPT = 100
"""Largest number of boxes of an image, as COCO counts them."""
OVERLAP, LEAST = 0.7, 0.001
"""Overlap (IoU) from which the less certain of two boxes is dropped, and the least score of a box."""


def boxes_of(centred: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the `KEPT` surest boxes, float32 [n, KEPT, 6], the surest first, filled up with -1.

    Each is (class, centre x, centre y, width, height, score).

    Args:
        centred: boxes (centre x, centre y, width, height), float32 [n, boxes, 4].
        scores: float32 [n, classes, boxes].
    """
    selected = _suppression().run(None, {"boxes": centred, "scores": scores})[0]
    image, kind, box = selected.T
    score = scores[image, kind, box]
    kept = np.full((len(centred), KEPT, 6), -1, np.float32)
    order = np.lexsort((-score, image))
    places = np.concatenate([np.arange(n) for n in np.bincount(image, minlength=len(centred))])
    rows = np.concatenate([kind[:, None], centred[image, box], score[:, None]], 1)[order]
    inside = places < KEPT
    kept[image[order][inside], places[inside]] = rows[inside]
    return kept


def precision_error(answers: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """Return n * (1 - mAP) and n, for answers as of `boxes_of` and labels [n, ., 5]: a class and a box without score.

    mAP is COCO's mean over classes and over the overlaps 0.5, 0.55 to 0.95.  Images without any object give 0 of 0.
    Raises RuntimeMissingError without pycocotools.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        hint = "`pip install 'ttac[eval]'`"
        raise RuntimeMissingError("the error of boxes needs pycocotools", hint=hint) from error
    images, objects = range(len(labels)), _entries(labels)
    found = _entries(answers)
    if not objects or not found:
        return (float(len(labels)), len(labels)) if objects else (0.0, 0)
    truth = COCO()
    truth.dataset = {
        "images": [{"id": number} for number in images],
        "categories": [{"id": kind} for kind in sorted({entry["category_id"] for entry in objects})],
        "annotations": [{**entry, "id": number, "iscrowd": 0} for number, entry in enumerate(objects, 1)],
    }
    with redirect_stdout(io.StringIO()):
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(found), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return len(labels) * (1 - float(judged.stats[0])), len(labels)


def _entries(boxes: np.ndarray) -> list[dict[str, Any]]:
    """Return COCO's entries of boxes [n, ., 5 or 6]: corner and size, and the score if there is one."""
    entries = []
    for image, own in enumerate(boxes):
        for kind, x, y, width, height, *score in own[own[:, 0] >= 0].tolist():
            corner = [x - width / 2, y - height / 2, width, height]
            entry = {"image_id": image, "category_id": int(kind), "bbox": corner, "area": width * height}
            entries.append({**entry, "score": score[0]} if score else entry)
    return entries


@lru_cache(maxsize=1)
def _suppression() -> Any:
    """Return a session of onnxruntime's NonMaxSuppression on `boxes` and `scores`."""
    import onnx
    import onnxruntime

    limits: dict[str, np.ndarray] = {
        "most": np.array([KEPT], np.int64),
        "overlap": np.array([OVERLAP], np.float32),
        "least": np.array([LEAST], np.float32),
    }
    node = onnx.helper.make_node(
        "NonMaxSuppression", ["boxes", "scores", *limits], ["kept"], center_point_box=1
    )  # fmt: skip
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto
    graph = onnx.helper.make_graph(
        [node],
        "suppression",
        [value("boxes", kind.FLOAT, ["n", "boxes", 4]), value("scores", kind.FLOAT, ["n", "classes", "boxes"])],
        [value("kept", kind.INT64, ["kept", 3])],
        [onnx.numpy_helper.from_array(array, name) for name, array in limits.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 11)]
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=opsets)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
