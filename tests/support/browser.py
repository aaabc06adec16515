"""A real browser: Chromium without a window, driven through its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without a sandbox, since tests may run as root, which Chromium refuses with one.
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe",
)  # fmt: skip
# The browser reads messages from descriptor 3 and writes them to 4.
_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_SECONDS = 30.0


class Tab:
    """Page of a browser.

    Args:
        requests: descriptor that the browser reads messages from.
        responses: descriptor that it writes messages to; each ends with a zero byte.
    """

    def __init__(self, requests: int, responses: int) -> None:
        self._requests, self._responses = requests, responses
        self._count = 0
        self._buffer = b""
        self._session: str | None = None
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]

    def call(self, method: str, parameters: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._count += 1
        message: dict[str, object] = {
            "id": self._count, "method": method, "params": parameters or {},
        }  # fmt: skip
        if self._session:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            response = self._read()
            # Events have no number.
            if response.get("id") == self._count:
                assert "error" not in response, response
                result: dict[str, Any] = response["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._responses, 1 << 16)
            assert data, "the browser has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        document: dict[str, Any] = json.loads(message)
        return document

    def open(self, url: str) -> None:
        """Open an address."""
        self.call("Page.navigate", {"url": url})

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Wait until an expression in the page is true, and return its value."""
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            if value := self.evaluate(expression):
                return value
            time.sleep(0.02)
        text = self.evaluate("document.body.innerText")
        raise AssertionError(f"never true: {expression}\n{text}")

    def drop(self, file: Path, selector: str) -> None:
        """Drop a file onto an element, as a person does with the mouse."""
        box = f"document.querySelector({selector!r}).getBoundingClientRect()"
        x, y = self.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Show the page at a size, in light or dark colours."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"features": [scheme]})

    def screenshot(self, path: Path) -> None:
        """Write what the page shows as a PNG."""
        data = self.call("Page.captureScreenshot")["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser() -> Iterator[Tab]:
    """Start Chromium and end it; skip where it is not installed."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no browser: apt-get install chromium")
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser_reads, requests = os.pipe()
        responses, browser_writes = os.pipe()
        start = [sys.executable, "-S", "-c", _START, str(browser_reads), str(browser_writes)]
        process = subprocess.Popen(
            [*start, program, *_FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(browser_reads, browser_writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_reads)
        os.close(browser_writes)
        try:
            yield Tab(requests, responses)
        finally:
            with suppress(OSError):
                os.write(requests, b'{"id": 0, "method": "Browser.close"}\0')
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(requests)
            os.close(responses)
