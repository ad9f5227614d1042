"""A headless Chromium for tests of pages: a server on loopback, and the DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)
TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}


def found() -> str:
    """Path of the browser, empty if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), "")


class _Handler(SimpleHTTPRequestHandler):
    """Serves folders by the first part of the address."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES

    def __init__(self, *arguments: Any, folders: Mapping[str, Path], **more: Any) -> None:
        self._folders = folders
        super().__init__(*arguments, **more)

    def translate_path(self, path: str) -> str:
        first, _, rest = path.split("?")[0].lstrip("/").partition("/")
        return str(self._folders.get(first, Path("/nowhere")) / rest)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def served(folders: Mapping[str, Path]) -> Iterator[str]:
    """The address of a server on loopback; `folders` maps the first part of an address to a folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folders=folders)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Page:
    """A page in a headless browser."""

    def __init__(self, width: int, height: int) -> None:
        (ours_in, theirs_out), (theirs_in, ours_out) = os.pipe(), os.pipe()
        self._folder = tempfile.TemporaryDirectory(prefix="ttac-chromium-", ignore_cleanup_errors=True)
        command = [
            found(),
            *OPTIONS,
            f"--user-data-dir={self._folder.name}",
            f"--window-size={width},{height}",
            "about:blank",
        ]
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._browser = subprocess.Popen(
            ["bash", "-c", script, "browser", *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for handle in (theirs_in, theirs_out):
            os.close(handle)
        self._reader, self._writer = open(ours_in, "rb", buffering=0), open(ours_out, "wb", buffering=0)
        self._rest, self._number, self._session = b"", 0, ""
        (target,) = (t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol; raises RuntimeError if it fails."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._writer.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            block = self._reader.read(1 << 16)
            if not block:
                raise RuntimeError("the browser ended")
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def value(self, script: str) -> Any:
        """The value of an expression in the page; raises RuntimeError if it throws."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def wait(self, script: str, seconds: float = 60) -> Any:
        """The first value of the expression that is true in JavaScript."""
        end = time.monotonic() + seconds
        while not (value := self.value(script)):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"`{script}` stays {value!r}; the page says: {self.value('document.body.innerText')}"
                )
            time.sleep(0.1)
        return value

    def screenshot(self, path: Path) -> None:
        """Write a picture of the window, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self._writer.close()
        self._reader.close()
        self._browser.terminate()
        self._browser.wait(20)
        self._folder.cleanup()


@contextmanager
def page(width: int = 1280, height: int = 900) -> Iterator[Page]:
    """A page of a new browser."""
    browser = Page(width, height)
    try:
        yield browser
    finally:
        browser.close()
