"""The page of `examples/web` in Chromium: it adapts, takes images, fits a phone, and asks no other server."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.support import chromium
from tests.support.pictures import assert_looks_like
from ttac.demo import file

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "examples" / "web" / "build.py"
INSTALLED = (ROOT / "consumers" / "js" / "node_modules" / ".ready").exists()
PICTURES = Path(__file__).parent / "pictures"
BLUE, ORANGE = (11, 107, 203), (194, 87, 26)
"""Colours of the two lines of the chart."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLED, reason="install npm, then run `make test` for its packages"),
    pytest.mark.skipif(not chromium.found(), reason="install chromium"),
]


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_web", BUILD)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    builder().build(folder)
    return folder


def opened(page: chromium.Page, address: str) -> None:
    page.open(f"{address}/web/index.html")
    page.wait("!document.getElementById('play')?.disabled && globalThis.page?.source !== undefined", 120)


def text(page: chromium.Page, name: str) -> str:
    return str(page.value(f"document.getElementById('{name}').textContent"))


def pixels(path: Path, colour: tuple[int, int, int]) -> int:
    """Return the number of pixels of the colour in a picture."""
    with Image.open(path) as picture:
        return int((np.asarray(picture.convert("RGB")) == colour).all(axis=-1).sum())


def test_the_page_adapts_to_a_shifted_stream(site: Path, tmp_path: Path) -> None:
    with chromium.served({"web": site}) as address, chromium.page() as page:
        opened(page, address)
        page.value("document.getElementById('play').click()")
        page.wait("globalThis.page.history.length === 16 && !globalThis.page.playing", 180)
        errors = page.value("globalThis.page.history")
        adapting, trained = (np.mean([row[key] for row in errors]) for key in ("adapting", "trained"))
        assert adapting < 0.25 and trained > 0.5
        assert text(page, "steps") == "16" and text(page, "rejected") == "0"
        assert text(page, "guard") == "0" and float(text(page, "entropy")) > 0
        page.screenshot(tmp_path / "page.png")
        asked = page.value("performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin)")
        assert set(asked) == {address}
    assert_looks_like(tmp_path / "page.png", PICTURES / "page-1280.png")
    assert pixels(tmp_path / "page.png", BLUE) > 2000 and pixels(tmp_path / "page.png", ORANGE) > 500


def test_images_are_classified_with_and_without_steps(site: Path, tmp_path: Path) -> None:
    with np.load(file("fashion_stream.npz")) as arrays:
        images, labels = arrays["clean"][:8, 0], arrays["labels"][:8]
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    with chromium.served({"web": site}) as address, chromium.page(390, 844) as page:
        opened(page, address)
        for steps in ("1", "1"):  # the second time, `Adapt` is off
            page.value("document.getElementById('results').replaceChildren()")
            document = page.call("DOM.getDocument")["root"]["nodeId"]
            node = page.call("DOM.querySelector", nodeId=document, selector="#files")["nodeId"]
            page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])
            page.wait("document.querySelectorAll('#results li').length === 8")
            assert text(page, "steps") == steps
            page.value("document.getElementById('adapt').checked = false")
        found = page.value("[...document.querySelectorAll('#results li')].map((item) => item.textContent).reverse()")
        names = builder().CLASSES
        right = sum(shown.startswith(names[label]) for shown, label in zip(found, labels, strict=True))
        assert right >= 6
        assert page.value("document.documentElement.scrollWidth") <= 390
        letters = "[...document.querySelectorAll('#chart text')].map(each => each.getBoundingClientRect().height)"
        assert min(page.value(letters)) > 11, "the letters of the chart keep their size on a phone"
        page.screenshot(tmp_path / "phone.png")
    assert_looks_like(tmp_path / "phone.png", PICTURES / "page-390.png")
