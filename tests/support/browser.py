# SPDX-License-Identifier: MIT
"""A headless Chromium that shows files, controlled by its DevTools protocol over two pipes."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Self

_PROGRAMS: Final = ("chromium-headless-shell", "chromium", "google-chrome")
# The descriptors that --remote-debugging-pipe reads and writes.
_COMMANDS: Final = 3
_ANSWERS: Final = 4
_LIMIT_S: Final = 60.0
_KEY_CODES: Final = {"Enter": 13, "Escape": 27, "Tab": 9}


class Browser:
    """One page; `with` starts and ends the browser."""

    def __enter__(self) -> Self:
        """Start the browser with an empty page."""
        program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
        assert program is not None, f"none of {', '.join(_PROGRAMS)} is installed"
        self._profile = tempfile.TemporaryDirectory(prefix="nfqg-browser-")
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        # Move the pipes away from the two numbers that the browser expects.
        commands, answers = (_moved_up(one) for one in (commands, answers))
        null = os.open(os.devnull, os.O_RDWR)
        self.pid = os.posix_spawn(
            program,
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--remote-debugging-pipe",
                f"--user-data-dir={self._profile.name}",
                "about:blank",
            ],
            os.environ | {"LANG": "C.UTF-8"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, null, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
                (os.POSIX_SPAWN_DUP2, commands, _COMMANDS),
                (os.POSIX_SPAWN_DUP2, answers, _ANSWERS),
            ],
        )
        for one in (commands, answers, null):
            os.close(one)
        self._number = 0
        self._session: str | None = None
        self._pending = b""
        self._events: list[dict[str, Any]] = []
        (target,) = (
            one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"
        )
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        """End the browser and remove its profile."""
        os.close(self._write)
        os.close(self._read)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        for _attempt in range(50):  # its child processes write into the profile until they exit
            try:
                self._profile.cleanup()
            except OSError:
                time.sleep(0.1)
            else:
                break

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the protocol; returns its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def open(self, path: Path) -> None:
        """Show a file, and wait until it is loaded."""
        self._events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())

    def run(self, expression: str) -> Any:  # noqa: ANN401 - any value of JSON
        """The value of an expression in the page."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def screen(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Choose the size of the window and the theme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        theme = "dark" if dark else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": theme}],
        )

    def press(self, key: str) -> None:
        """Press a key: a character, or a name such as `Enter`."""
        named = key in _KEY_CODES
        text = "\r" if key == "Enter" else "" if named else key
        code = _KEY_CODES.get(key, ord(key[0]))
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def picture(self, path: Path, width: int, height: int, top: int = 0) -> None:
        """Write a part of the page as a PNG."""
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        shot = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """The page as a PDF."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def complaints(self) -> list[str]:
        """The browser's log about the page since `open`: errors, violations of its policy."""
        self.call("Runtime.evaluate", expression="0")
        found = []
        for event in self._events:
            if event.get("method") == "Log.entryAdded":
                found.append(event["params"]["entry"]["text"])
            elif event.get("method") == "Runtime.exceptionThrown":
                found.append(event["params"]["exceptionDetails"]["text"])
        return found

    def requests(self) -> list[str]:
        """The addresses that the page loaded since `open`."""
        return [
            event["params"]["request"]["url"]
            for event in self._events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + _LIMIT_S
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._read], [], [], deadline - time.monotonic())
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser ended"
            self._pending += part
        message, _, self._pending = self._pending.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


def _moved_up(descriptor: int) -> int:
    """The same pipe under a number above those that the browser expects."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
