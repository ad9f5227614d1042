"""Geometry of a sliding window: one form for Conv, ConvTranspose and the pools, with every attribute resolved."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.places import node_place, value_place
from ttac.passes.graph.shapes import is_batch


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window over the spatial axes; each field has one int per axis.

    Output position p and tap k read input position `p*stride + k*dilation - begin`. `sizes` and `outs` are the
    spatial sizes of the windowed tensor and of the result.  These sizes fix the effect of `ceil_mode` and of the
    trailing pads.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    sizes: tuple[int, ...]
    outs: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """Length from the first to the last tap, inclusive."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def reach(self) -> tuple[int, ...]:
        """Length, leading pads included, that all windows together read."""
        return tuple((o - 1) * s + e for o, s, e in zip(self.outs, self.strides, self.extents, strict=True))

    @property
    def overhang(self) -> tuple[int, ...]:
        """Elements that the last window reads past the end; negative where no window reads a remainder at the end."""
        return tuple(r - b - n for r, b, n in zip(self.reach, self.begins, self.sizes, strict=True))

    @property
    def axes(self) -> list[int]:
        """The spatial axes of [N, C, ...]."""
        return list(range(2, 2 + len(self.kernel)))

    def taps(self) -> Iterator[tuple[int, ...]]:
        """All kernel positions in row-major order."""
        return itertools.product(*(range(k) for k in self.kernel))

    def attributes(self) -> dict[str, list[int]]:
        """Return the window as attributes of a ttac node; `read` is the inverse."""
        return {name: list(field) for name, field in asdict(self).items()}

    @classmethod
    def read(cls, node: ir.Node) -> Window:
        """Return the window that `attributes` wrote on a ttac node."""
        return cls(**{name: tuple(node.attributes.get_ints(name)) for name in cls.__dataclass_fields__})


def window_of(node: ir.Node, kernel: Sequence[int], sizes: Sequence[int], outs: Sequence[int]) -> Window:
    """Return the window of a Conv or pool node over an input of spatial `sizes` with outputs of spatial `outs`.

    Raises UnsupportedError for an unknown `auto_pad`.
    """
    count = len(kernel)
    strides = node.attributes.get_ints("strides") or [1] * count
    dilations = node.attributes.get_ints("dilations") or [1] * count
    pads = node.attributes.get_ints("pads") or [0] * (2 * count)
    free = Window(
        kernel=tuple(kernel),
        strides=tuple(strides),
        dilations=tuple(dilations),
        begins=(0,) * count,
        sizes=tuple(sizes),
        outs=tuple(outs),
    )
    totals = [max(0, total) for total in free.overhang]
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    begins = {
        "NOTSET": list(pads[:count]),
        "VALID": [0] * count,
        "SAME_UPPER": [total // 2 for total in totals],
        "SAME_LOWER": [total - total // 2 for total in totals],
    }
    if mode not in begins:
        raise UnsupportedError(f"unknown `auto_pad` {mode!r}", where=node_place(node))
    return Window(
        kernel=free.kernel,
        strides=free.strides,
        dilations=free.dilations,
        begins=tuple(begins[mode]),
        sizes=free.sizes,
        outs=free.outs,
    )


def spatial(value: ir.Value | None) -> list[int]:
    """Return the spatial sizes of a [N, C, ...] value.

    Raises UnsupportedError unless all are ints.
    """
    assert value is not None
    sizes = list(value.shape or ())[2:]
    if value.shape is None or not all(isinstance(size, int) for size in sizes):
        problem = f"the spatial size of {value_place(value)} is only known as {value.shape}"
        if any(is_batch(str(size)) for size in sizes):
            problem = f"the samples are the positions of one sequence, {value_place(value)} {value.shape}"
        raise UnsupportedError(
            problem,
            hint="take a method that needs no gradient (`ttac inspect` lists those that fit), or adapt only norms "
            "behind this value: `--train SELECTOR`",
        )
    return [int(size) for size in sizes]  # type: ignore[arg-type]
