"""The memory plan as a picture: a bar for each layer, what is kept of it by how, and what the plan saves.

The drawing is SVG of its own, without fonts or scripts from elsewhere, readable on a light and on a dark page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from ttac.sizes import format_size

COLOURS = {
    "dense": ("#3266ad", "#7aa7e6"),
    "int8": ("#c2691c", "#eba15c"),
    "blocks": ("#2c8a5b", "#5fc394"),
    "levels": ("#2c8a5b", "#5fc394"),
    "sparse": ("#2c8a5b", "#5fc394"),
    "topk": ("#2c8a5b", "#5fc394"),
    "nonzero": ("#7d7a23", "#c3bf54"),
    "bits": ("#8a4fae", "#c08ce0"),
    "fp16": ("#b0413e", "#e88480"),
}
"""By codec, on a light page and on a dark one."""
INK, SAVED = ("#24292f", "#e6edf3"), ("#8c959f", "#6e7681")
LABELS, BAR, ROW, TOP, WIDTH = 210, 420, 18, 44, 780
LONGEST = 34
"""Letters of a layer's name, of which the last are shown."""
SMALLEST = 0.005
"""A layer below this share of the largest is not drawn by itself."""


@dataclass
class Layer:
    """Bytes of one layer: kept, by how, and had everything been kept as it is."""

    name: str
    kept: dict[str, int]
    dense: int = 0

    @property
    def total(self) -> int:
        """Bytes kept in all."""
        return sum(self.kept.values())


def layers_of(plan: Sequence[Mapping[str, Any]]) -> list[Layer]:
    """The plan's rows summed by layer, in the order of their first value; small layers together at the end."""
    found: dict[str, Layer] = {}
    for row in plan:
        name = str(row.get("layer") or row["value"])
        layer = found.setdefault(name, Layer(name, {}))
        if row["how"] != "recompute":
            layer.kept[str(row["how"])] = layer.kept.get(str(row["how"]), 0) + int(row["bytes"])
        layer.dense += int(row["dense"])
    least = SMALLEST * max((max(layer.dense, layer.total) for layer in found.values()), default=0)
    told = [layer for layer in found.values() if max(layer.dense, layer.total) >= least]
    rest = [layer for layer in found.values() if layer not in told]
    if len(rest) < 2:
        return [*told, *rest]
    kept: dict[str, int] = {}
    for layer in rest:
        for how, size in layer.kept.items():
            kept[how] = kept.get(how, 0) + size
    return [*told, Layer(f"{len(rest)} small layers", kept, sum(layer.dense for layer in rest))]


def plan_picture(plan: Sequence[Mapping[str, Any]], title: str) -> str:
    """The SVG of a plan as `report.json` of a bundle holds it; `title` stands above the bars."""
    layers = layers_of(plan)
    hows = list(dict.fromkeys(how for layer in layers for how in layer.kept))
    height = TOP + ROW * len(layers) + 16
    root = ElementTree.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {height}", role="img", width=str(WIDTH)
    )
    ElementTree.SubElement(root, "title").text = title
    ElementTree.SubElement(root, "style").text = _style(hows)
    _text(root, 8, 18, title, "ink")
    _legend(root, hows)
    scale = BAR / max([1, *(max(layer.dense, layer.total) for layer in layers)])
    for number, layer in enumerate(layers):
        _bar(root, layer, TOP + ROW * number, scale)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _style(hows: Sequence[str]) -> str:
    """Colours of both pages; a codec without a colour of its own takes that of the text."""
    names = {"ink": INK, "saved": SAVED, **{f"how-{how}": COLOURS.get(how, INK) for how in hows}}
    light, dark = (_rules({name: pair[page] for name, pair in names.items()}) for page in (0, 1))
    return f"text{{font:11px sans-serif}}{light}@media(prefers-color-scheme:dark){{{dark}}}"


def _rules(colours: Mapping[str, str]) -> str:
    return "".join(
        f".{name}{{fill:none;stroke:{value}}}" if name == "saved" else f".{name}{{fill:{value}}}"
        for name, value in colours.items()
    )


def _legend(root: ElementTree.Element, hows: Sequence[str]) -> None:
    x = LABELS
    for name, label in [*((f"how-{how}", how) for how in hows), ("saved", "saved")]:
        _rectangle(root, x, 26, 10, name)
        _text(root, x + 14, 35, label, "ink")
        x += 24 + 7 * len(label)


def _bar(root: ElementTree.Element, layer: Layer, y: float, scale: float) -> None:
    """The layer's name, its parts side by side, the outline of what it would take dense, and the figures."""
    _text(
        root, LABELS - 8, y + 11, layer.name if len(layer.name) <= 34 else f"…{layer.name[-33:]}", "ink", anchor="end"
    )
    x = float(LABELS)
    for how, size in layer.kept.items():
        _rectangle(root, x, y + 2, size * scale, f"how-{how}")
        x += size * scale
    if layer.dense > layer.total:
        _rectangle(root, x, y + 2, (layer.dense - layer.total) * scale, "saved")
    end = LABELS + max(layer.dense, layer.total) * scale
    figures = format_size(layer.total) + (f" of {format_size(layer.dense)}" if layer.dense > layer.total else "")
    _text(root, end + 6, y + 11, figures, "ink")


def _rectangle(root: ElementTree.Element, x: float, y: float, width: float, name: str) -> None:
    sizes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": "10"}
    ElementTree.SubElement(root, "rect", {**sizes, "class": name})


def _text(root: ElementTree.Element, x: float, y: float, text: str, name: str, anchor: str = "start") -> None:
    where = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "class": name}
    ElementTree.SubElement(root, "text", where).text = text
