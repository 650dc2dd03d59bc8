"""A headless Chromium, driven over pipes by the DevTools protocol: no package, no port."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--remote-debugging-pipe",
)


def executable() -> str | None:
    """Returns the path of a Chromium, None if the machine has none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab.

    Attributes:
      requests: addresses that the tab asked for.
      log: errors that its console printed.
    """

    def __init__(self, commands: int, answers: int):
        self._commands, self._answers = commands, answers
        self._rest, self._count, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.log: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(30.0)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready = select([self._answers], [], [], max(0.0, end - time.monotonic()))[0]
            assert ready, "the browser does not answer"
            self._rest += os.read(self._answers, 2**20)
        first, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(first)
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.log.append(params["entry"]["text"])
        return message

    def open(self, address: str, width: int = 1280, height: int = 900) -> None:
        """Opens an address in a window of a size."""
        mobile = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        self.call("Page.navigate", url=address)

    def evaluate(self, script: str) -> Any:
        """Returns the value of a JavaScript expression."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 20.0) -> Any:
        """Returns the value of an expression once it is true; fails after some seconds."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, f"never true: {script}\n{self.text()}"
            time.sleep(0.1)
        return value

    def click(self, selector: str) -> None:
        """Clicks the first element that a selector finds, once there is one."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector: str, value: object) -> None:
        """Types a value into the first input that a selector finds, once there is one."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        time.sleep(0.3)  # a component that has just appeared still sets its first value
        self.evaluate(
            f"""(() => {{
            const input = document.querySelector({json.dumps(selector)});
            const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(input), "value").set;
            set.call(input, {json.dumps(str(value))});
            for (const kind of ["input", "change", "blur"])
                input.dispatchEvent(new Event(kind, {{bubbles: true}}));
            }})()"""
        )
        time.sleep(0.3)  # what was typed reaches the page's state a little later

    def upload(self, selector: str, path: Path) -> None:
        """Chooses a file in the first input that a selector finds."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        node = self.call("DOM.getDocument")["root"]["nodeId"]
        found = self.call("DOM.querySelector", nodeId=node, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=found, files=[str(path)])

    def text(self) -> str:
        """Returns what the page shows."""
        return self.evaluate("document.body.innerText")

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Writes a picture of the page."""
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(made["data"]))


@contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """Starts a browser with a new profile, and ends it."""
    name = executable()
    assert name is not None
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()
    # The browser reads descriptor 3 and writes 4. Bash puts the pipes there; sh knows 0 to 9 only.
    redirect = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
    running = subprocess.Popen(
        [
            "bash",
            "-c",
            redirect,
            "bash",
            name,
            *_FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
        ],
        pass_fds=(read_commands, write_answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_commands)
    os.close(write_answers)
    try:
        yield Browser(write_commands, read_answers)
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        os.close(write_commands)
        os.close(read_answers)
