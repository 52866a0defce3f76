"""A headless Chromium, driven through two pipes in its DevTools protocol: commands, and JavaScript."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 60.0


class Page:
    """A page of a browser of its own; a with statement ends both."""

    def __init__(self, folder: Path, address: str, width: int = 1400, height: int = 900) -> None:
        ours, theirs = os.pipe(), os.pipe()  # what it reads, what it writes
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        places = [(os.POSIX_SPAWN_DUP2, ours[0], 3), (os.POSIX_SPAWN_DUP2, theirs[1], 4)]
        quiet = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        words = [str(PROGRAM), *flags, f"--user-data-dir={folder}"]
        self.process = os.posix_spawn(str(PROGRAM), words, os.environ, file_actions=[*places, quiet])
        os.close(ours[0])
        os.close(theirs[1])
        self.told, self.heard = os.fdopen(ours[1], "wb", 0), os.fdopen(theirs[0], "rb", 0)
        self.n_sent, self.session, self.rest = 0, {}, b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self.size(width, height)
        self.send("Page.navigate", url=address)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *error: object) -> None:
        os.kill(self.process, signal.SIGTERM)
        os.waitpid(self.process, 0)
        self.told.close()
        self.heard.close()

    def size(self, width: int, height: int) -> None:
        """The window; below 600 pixels it is a phone's."""
        phone = {"mobile": width < 600, "deviceScaleFactor": 2 if width < 600 else 1}
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, **phone)

    def send(self, method: str, **words: Any) -> Any:
        """A command, and its answer."""
        self.n_sent += 1
        self.told.write(
            json.dumps({"id": self.n_sent, "method": method, "params": words, **self.session}).encode() + b"\0"
        )
        while True:
            found = self._next()
            if found.get("id") == self.n_sent:
                assert "error" not in found, found
                return found["result"]

    def _next(self) -> Any:
        while b"\0" not in self.rest:
            part = os.read(self.heard.fileno(), 1 << 16)
            assert part, "the browser went away"
            self.rest += part
        found, _, self.rest = self.rest.partition(b"\0")
        return json.loads(found)

    def run(self, script: str) -> Any:
        """What an expression of JavaScript gives, as JSON."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """What an expression gives once it is true."""
        end = time.monotonic() + SECONDS
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.1)
        return found

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))
