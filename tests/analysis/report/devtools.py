"""A page in headless Chromium, walked by the DevTools protocol. No test in it.

In: a page, and steps: clicks, keys, wheels, links. Out: what its script answers. The protocol runs
over two pipes (`--remote-debugging-pipe`), so that no port is opened and no library is needed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@dataclass
class Walk:
    """A page that is open: `send` says what to do, and `seen` holds what the page reported."""

    to_page: int
    from_page: int
    session: str | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)
    _number: int = 0
    _read: bytes = b""

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.to_page, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self.seen.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            chunk = os.read(self.from_page, 1 << 20)
            assert chunk, "Chromium ended"
            self._read += chunk
        line, _, self._read = self._read.partition(b"\0")
        return dict(json.loads(line))

    def ask(self, code: str) -> Any:
        """Return what an expression is in the page; a promise is awaited."""
        result = self.send(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, (code, result["exceptionDetails"])
        return result["result"].get("value")

    def frame(self) -> None:
        """Wait until what was asked for is drawn."""
        twice = "requestAnimationFrame(() => requestAnimationFrame(done))"
        self.ask(f"new Promise(done => {twice})")

    def place(self, selector: str, *, at: float = 0.5) -> tuple[float, float]:
        """Return a point of an element, scrolled into view; `at` is a share of its width."""
        code = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            f"return [b.left + {at} * b.width, b.top + b.height / 2] }})()"
        )
        x, y = self.ask(code)
        return x, y

    def click(self, selector: str) -> None:
        """Click the middle of an element, as a mouse does."""
        self.click_at(*self.place(selector))

    def click_at(self, x: float, y: float) -> None:
        """Click a point of the window."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)
        self.frame()

    def wheel(self, x: float, y: float, *, by: float) -> None:
        """Turn the wheel over a point."""
        self.send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by)

    def key(self, name: str) -> None:
        """Press a key."""
        text = {"text": name} if len(name) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=name)
        self.frame()


@contextmanager
def walked(page: Path, folder: Path, *, size: tuple[int, int] = (1280, 1000)) -> Iterator[Walk]:
    """Open a page, and close Chromium behind the walk."""
    to_child, to_page = os.pipe()
    from_page, from_child = os.pipe()
    width, height = size

    def as_three_and_four() -> None:
        """Put the pipes where Chromium looks for them."""
        ends = os.dup(to_child), os.dup(from_child)
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    words = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}",
        "--remote-debugging-pipe", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(
        words, close_fds=False, preexec_fn=as_three_and_four, stderr=subprocess.DEVNULL
    )
    os.close(to_child)
    os.close(from_child)
    try:
        walk = Walk(to_page, from_page)
        targets = walk.send("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        attached = walk.send("Target.attachToTarget", targetId=target, flatten=True)
        walk.session = attached["sessionId"]
        walk.send("Runtime.enable")
        walk.send("Page.enable")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        walk.send("Emulation.setDeviceMetricsOverride", **metrics)
        walk.send("Page.navigate", url=page.as_uri())
        loaded = "document.readyState === 'complete' ? done(1) : setTimeout(look, 20)"
        walk.ask(f"new Promise(done => {{ const look = () => {loaded}; look(); }})")
        walk.frame()
        yield walk
    finally:
        process.terminate()
        process.wait(timeout=20)
        os.close(to_page)
        os.close(from_page)
