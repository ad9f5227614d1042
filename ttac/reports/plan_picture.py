"""The memory plan as a picture: one bar per layer with the kept bytes of each codec and the saved bytes.

The picture is one SVG element without foreign fonts or scripts, readable on a light and on a dark page.  Its style
applies to its own class only, so that a page can hold several such elements.
"""

from __future__ import annotations

from collections import Counter
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
    "channels": ("#2c8a5b", "#5fc394"),
    "bits": ("#8a4fae", "#c08ce0"),
}
"""Colours of the codecs on a light page and on a dark page."""
INK, SAVED = ("#24292f", "#e6edf3"), ("#8c959f", "#6e7681")
LABELS, BAR, ROW, TOP, WIDTH = 210, 420, 18, 44, 780
"""Pixels: width of the names, of the longest bar, height of a row and of the head, width of the picture."""
LONGEST = 34
"""Letters of a layer's name in the picture; a longer name loses its first letters."""
SMALLEST = 0.005
"""Fraction of the largest layer below which layers share one bar."""


@dataclass
class LayerBytes:
    """Bytes of one layer: kept bytes by codec, and the bytes of the dense values."""

    name: str
    kept: dict[str, int]
    dense: int = 0

    @property
    def total(self) -> int:
        """Sum of the kept bytes."""
        return sum(self.kept.values())


def layers_of(plan: Sequence[Mapping[str, Any]]) -> list[LayerBytes]:
    """Return the plan's rows summed by layer, in the order of their first value; the last entry sums small layers."""
    layers: dict[str, LayerBytes] = {}
    for row in plan:
        name = str(row.get("layer") or row["value"])
        layer = layers.setdefault(name, LayerBytes(name, {}))
        if row["how"] != "recompute":
            layer.kept[str(row["how"])] = layer.kept.get(str(row["how"]), 0) + int(row["bytes"])
        layer.dense += int(row["dense"])
    least = SMALLEST * max((max(layer.dense, layer.total) for layer in layers.values()), default=0)
    large = [layer for layer in layers.values() if max(layer.dense, layer.total) >= least]
    small = [layer for layer in layers.values() if layer not in large]
    if len(small) < 2:
        return [*large, *small]
    kept: Counter[str] = Counter()
    for layer in small:
        kept.update(layer.kept)
    return [*large, LayerBytes(f"{len(small)} small layers", dict(kept), sum(layer.dense for layer in small))]


def plan_picture(plan: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return the SVG of the plan in a bundle's `report.json`, with `title` above the bars."""
    layers = layers_of(plan)
    hows = list(dict.fromkeys(how for layer in layers for how in layer.kept))
    box = f"0 0 {WIDTH} {TOP + ROW * len(layers) + 16}"
    names = {"xmlns": "http://www.w3.org/2000/svg", "class": "plan"}
    root = ElementTree.Element("svg", {**names, "viewBox": box, "role": "img", "width": str(WIDTH)})
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
    """Return the colours of both pages as CSS; an unknown codec takes the colour of the text."""
    names = {"ink": INK, "saved": SAVED, **{f"how-{how}": COLOURS.get(how, INK) for how in hows}}
    light, dark = (_rules({name: pair[page] for name, pair in names.items()}) for page in (0, 1))
    return f".plan text{{font:11px sans-serif}}{light}@media(prefers-color-scheme:dark){{{dark}}}"


def _rules(colours: Mapping[str, str]) -> str:
    return "".join(
        f".plan .{name}{{fill:none;stroke:{value}}}" if name == "saved" else f".plan .{name}{{fill:{value}}}"
        for name, value in colours.items()
    )


def _legend(root: ElementTree.Element, hows: Sequence[str]) -> None:
    x = LABELS
    for name, label in [*((f"how-{how}", how) for how in hows), ("saved", "saved")]:
        _rectangle(root, x, 26, 10, name)
        _text(root, x + 14, 35, label, "ink")
        x += 24 + 7 * len(label)


def _bar(root: ElementTree.Element, layer: LayerBytes, y: float, scale: float) -> None:
    """Draw the layer's name, its parts side by side, the outline of the saved bytes, and the figures."""
    name = layer.name if len(layer.name) <= LONGEST else f"…{layer.name[1 - LONGEST :]}"
    _text(root, LABELS - 8, y + 11, name, "ink", anchor="end")
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
