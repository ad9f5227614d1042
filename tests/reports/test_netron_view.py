"""The first view of a bundle's graph in Netron, drawn by Chromium: the layers, and the committed picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import ttac
from tests.support import chromium
from tests.support.pictures import assert_looks_like
from ttac.cli.viewing import graph_file, shown_file
from ttac.demo import file

PICTURES = Path(__file__).parent / "pictures"

BRACKETS = """document.querySelectorAll('svg text, svg tspan').forEach(text => {
  if (!text.children.length) text.textContent = text.textContent.replace('\u3008', '(').replace('\u3009', ')');
})"""
"""Netron writes shapes in brackets of East Asian fonts, which a machine for tests lacks."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not chromium.found(), reason="install chromium")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    netron = pytest.importorskip("netron")
    bundle = tmp_path_factory.mktemp("netron") / "b.ttac"
    ttac.compile(file("fashion_resnet_bn_unfolded.onnx"), method="tent", output=bundle)
    with shown_file(graph_file(bundle, None), folds=True) as shown:
        address = netron.start(str(shown), browse=False)
        place = f"http://{address[0]}:{address[1]}"
        with chromium.page() as opened:
            opened.call("Network.enable")
            opened.call("Network.setBlockedURLs", urls=["https://*"])  # Netron's statistics of use
            opened.call("Network.setCookie", name="consent", value="1", url=place)
            opened.open(place)
            # Netron lays the graph out behind its first page, which disappears at the end.
            opened.wait(
                "document.querySelectorAll('svg g.node').length && !document.body.matches('.welcome, .spinner')"
            )
            opened.value("new Promise(done => setTimeout(done, 500))")
            opened.value(BRACKETS)
            yield opened
        netron.stop(address)


def test_every_layer_is_a_box(page: chromium.Page) -> None:
    boxes = page.value("[...document.querySelectorAll('svg g.node')].map(node => node.textContent)")
    for layer in ("bn1", "layer1/0/bn1", "layer2/0/downsample/1", "layer3/1/bn2"):
        assert any(box.startswith(layer) or box.startswith(layer.rpartition("/")[2]) for box in boxes)
    assert 40 < len(boxes) < 100
    assert not any("int64(" in box or "float32(" in box for box in boxes), "constants are inside the boxes"


def test_the_first_view_looks_like_the_picture(page: chromium.Page, tmp_path: Path) -> None:
    """The view begins with the input and shows boxes with names, not stray lines."""
    page.screenshot(tmp_path / "now.png")
    assert_looks_like(tmp_path / "now.png", PICTURES / "netron-1280.png")
    seen = page.value(
        "[...document.querySelectorAll('svg g.node')].filter(node => {"
        "const box = node.getBoundingClientRect();"
        "return box.top >= 0 && box.bottom <= window.innerHeight && box.left >= 0 && box.right <= window.innerWidth;"
        "}).map(node => node.textContent)"
    )
    assert seen[0].startswith("x") and sum("bn" in box for box in seen) >= 2 and len(seen) >= 8
