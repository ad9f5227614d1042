"""The picture of the README: `python -m benchmarks.result_picture`; needs the extra `eval`.

The picture shows source, bn, tent and sar with default settings on the shipped BatchNorm net at batch 64.  The samples
are the first 512 shipped test images under each of the fifteen corruptions of ImageNet-C at severity 5, with a reset to
the source before each corruption.  `--draw` draws the figures of the last run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import ttac

DEMO = Path(ttac.__file__).resolve().parent / "demo"
DOCS = Path(__file__).resolve().parent.parent / "docs"
METHODS = ("source", "bn", "tent", "sar")
COLOURS = {
    "source": ("#8c959f", "#6e7681"),
    "bn": ("#8fb8de", "#4d7ba6"),
    "tent": ("#2b6cb0", "#7ab8f5"),
    "sar": ("#c2691c", "#eba15c"),
}
"""Colours on a light page and on a dark page."""
INK = ("#24292f", "#e6edf3")
WIDTH, TOP, LEFT, STEP, BAR, FULL, BOTTOM = 860, 46, 40, 50, 10, 200, 92

Errors = Mapping[str, Mapping[str, float]]
"""Method -> corruption -> fraction of wrong answers."""


def main() -> None:
    """Measure or read the errors, and write `docs/result.json` and `docs/result.svg`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.result_picture", description=__doc__)
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    kept = DOCS / "result.json"
    if not parser.parse_args().draw:
        kept.write_text(json.dumps(measured(), indent=1) + "\n", encoding="utf-8")
    errors: Errors = json.loads(kept.read_text(encoding="utf-8"))
    (DOCS / "result.svg").write_text(picture(errors), encoding="utf-8")
    print("mean error:", ", ".join(f"{method} {100 * mean(errors, method):.1f} %" for method in errors))


def measured() -> dict[str, dict[str, float]]:
    """Return the errors of every method under every corruption."""
    evaluation = ttac.evaluate(
        DEMO / "fashion_resnet_bn.onnx",
        DEMO / "fashion_stream.npz",
        methods=METHODS,
        arrays=["clean"],
        corruptions=["all"],
        protocols=["reset-each-shift"],
        samples=512,
        batch=64,
        options={"calibration": DEMO / "fashion_calibration.npz"},
        threads=1,
    )
    errors: dict[str, dict[str, float]] = {method: {} for method in METHODS}
    for row in evaluation.rows():
        if row["shift"] not in ("clean", "mean"):
            errors[row["method"]][row["shift"]] = row["error"]
    return errors


def mean(errors: Errors, method: str) -> float:
    """Return the mean error of a method over the corruptions."""
    return sum(errors[method].values()) / len(errors[method])


def picture(errors: Errors) -> str:
    """Return the SVG: bars of all methods side by side, for each corruption and for the mean."""
    groups = {name: [errors[method][name] for method in errors] for name in next(iter(errors.values()))}
    groups["mean"] = [mean(errors, method) for method in errors]
    size = {"viewBox": f"0 0 {WIDTH} {TOP + FULL + BOTTOM}", "width": str(WIDTH), "role": "img"}
    root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size})
    title = "Error in % under fifteen corruptions, severity 5, batch 64: the shipped Fashion-MNIST net"
    ElementTree.SubElement(root, "title").text = title
    ElementTree.SubElement(root, "style").text = style()
    text(root, 4, 14, title)
    for number, method in enumerate(errors):
        rectangle(root, LEFT + 150 * number, 24, 10, method, 10)
        text(root, LEFT + 150 * number + 14, 33, f"{method} (mean {100 * mean(errors, method):.1f} %)")
    for percent in (0, 25, 50, 75, 100):
        y = TOP + FULL * (1 - percent / 100)
        text(root, LEFT - 6, y + 4, str(percent), "text-anchor", "end")
        place = {"x1": str(LEFT), "x2": str(WIDTH - 8), "y1": f"{y:.1f}", "y2": f"{y:.1f}", "class": "grid"}
        ElementTree.SubElement(root, "line", place)
    for number, (name, values) in enumerate(groups.items()):
        x = LEFT + 6 + STEP * number
        for offset, (method, value) in enumerate(zip(errors, values, strict=True)):
            rectangle(root, x + offset * BAR, TOP + FULL * (1 - value), FULL * value, method)
        y = TOP + FULL + 14
        text(root, x + 24, y, name.replace("_", " "), "transform", f"rotate(-40 {x + 24} {y})", "text-anchor", "end")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def style() -> str:
    """Return the CSS of the light page and of the dark page."""
    pages = [
        f"text{{font:11px sans-serif;fill:{INK[page]}}}.grid{{stroke:{INK[page]};stroke-opacity:.15}}"
        + "".join(f".{method}{{fill:{colours[page]}}}" for method, colours in COLOURS.items())
        for page in (0, 1)
    ]
    return f"{pages[0]}@media(prefers-color-scheme:dark){{{pages[1]}}}"


def rectangle(
    root: ElementTree.Element, x: float, y: float, height: float, name: str, width: float = BAR - 0.5
) -> None:
    """Draw a bar in the colour of the method `name`."""
    sizes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    ElementTree.SubElement(root, "rect", {**sizes, "class": name})


def text(root: ElementTree.Element, x: float, y: float, words: str, *attributes: str) -> None:
    """Draw words at a place; `attributes` are names and values in turn."""
    more = dict(zip(attributes[::2], attributes[1::2], strict=True))
    ElementTree.SubElement(root, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **more}).text = words


if __name__ == "__main__":
    main()
