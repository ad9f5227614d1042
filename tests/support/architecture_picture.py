"""Draw `docs/architecture.svg`, the import graph between the rooms, as a triangle of dots.

python -m tests.support.architecture_picture
"""

from __future__ import annotations

from xml.sax.saxutils import escape

from tests.support.import_graph import DOOR, ROOMS, ROOT, arrows, room

PICTURE = ROOT / "docs" / "architecture.svg"
CELL, LABEL, TOP, RADIUS = 20, 250, 30, 5
"""Pixels: side of a cell, width of the names, height of the numbers, radius of a dot."""

DEVICE = 2
"""The first rooms that the device imports."""

STYLE = """\
text { font: 13px sans-serif; fill: #24292f; }
.number { text-anchor: middle; fill: #6e7681; }
.device { fill: #2b6cb0; }
.stripe { fill: #8c959f; fill-opacity: 0.13; }
.step { fill: none; stroke: #8c959f; }
.dot { fill: #2b6cb0; }
.back { fill: #c9302c; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .device { fill: #7ab8f5; } .dot { fill: #7ab8f5; } }"""


def picture() -> str:
    """Text of the picture: a row for each room, a dot where a module of the row imports one of the column."""
    size = CELL * len(ROOMS)
    box = f'viewBox="0 0 {LABEL + size + CELL} {TOP + size + CELL}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">', title(), f"<style>\n{STYLE}\n</style>"]
    parts += [row(place) for place in range(len(ROOMS))]
    parts += [dot(importer, imported) for importer, imported in sorted(links())]
    return "\n".join([*parts, diagonal(), "</svg>", ""])


def links() -> set[tuple[int, int]]:
    """The pairs of rooms with an import from the first to the second."""
    inside = [arrow for arrow in arrows() if DOOR not in (arrow.importer, arrow.imported) and not arrow.typing]
    return {(room(arrow.importer), room(arrow.imported)) for arrow in inside}


def title() -> str:
    return "<title>Imports between the rooms: every dot lies on the diagonal or to its left</title>"


def row(place: int) -> str:
    """Number and name of a room, its number above its column, and a stripe below every other row."""
    top, middle = TOP + CELL * place, TOP + CELL * place + 14
    kind = ' class="device"' if place < DEVICE else ""
    width = LABEL + CELL * len(ROOMS)
    stripe = f'<rect class="stripe" x="0" y="{top}" width="{width}" height="{CELL}"/>\n' if place % 2 else ""
    number = f'<text class="number" x="{LABEL + CELL * place + CELL // 2}" y="{TOP - 8}">{place + 1}</text>'
    return f'{stripe}<text x="8" y="{middle}"{kind}>{place + 1}  {escape(name(place))}</text>\n{number}'


def name(place: int) -> str:
    """Name of the room: its modules without `ttac.`, two at most."""
    names = [module.removeprefix("ttac.").replace("passes.", "passes/") for module in ROOMS[place]]
    return ", ".join(names[:2]) + (", …" if len(names) > 2 else "")


def dot(importer: int, imported: int) -> str:
    x, y = LABEL + CELL * imported + CELL // 2, TOP + CELL * importer + CELL // 2
    return f'<circle class="{"back" if imported > importer else "dot"}" cx="{x}" cy="{y}" r="{RADIUS}"/>'


def diagonal() -> str:
    """The stairs above which no dot may lie."""
    steps = "".join(f" h{CELL} v{CELL}" for _ in ROOMS)
    return f'<path class="step" d="M{LABEL} {TOP}{steps}"/>'


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
