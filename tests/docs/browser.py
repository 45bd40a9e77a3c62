"""A headless Chromium, spoken to over two pipes in its own protocol: one process, one tab, no driver, no port.

`Browser` notes every request that a page makes and everything its console says, which a screenshot does not show.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

FOUND = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
WIDE, PHONE = (1280, 900), (390, 844)
# The browser reads from file descriptor 3 and writes to 4.
START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]]
for end, at in zip(ends, (3, 4)):
    os.dup2(end, at)
os.execv(sys.argv[3], sys.argv[3:])
"""
HARMLESS = ("file:", "data:", "blob:", "about:")


class Browser:
    """One tab of a headless Chromium for which no name resolves.

    Attributes:
        requests: every address that was asked for since the last `open`.
        complaints: errors, warnings and uncaught exceptions of the console since the last `open`.
    """

    def __init__(self, timeout: float = 30) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._timeout, self._count, self._rest = timeout, 0, b""
        self._loaded = False

    def __enter__(self) -> "Browser":
        self._profile = tempfile.mkdtemp(prefix="browser-")
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        line = [
            str(FOUND),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            "--force-color-profile=srgb",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={self._profile}",
            "--remote-debugging-pipe",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", START, str(theirs_in), str(theirs_out), *line],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        os.set_blocking(self._from, False)
        self._session: str | None = None
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Network", "Runtime", "Log", "Page"):
                self.call(f"{domain}.enable")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        os.close(self._to)  # a browser without its pipe ends
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; returns its result, and takes note of what happened meanwhile.

        Raises:
            RuntimeError: the browser refuses, or has ended.
            TimeoutError: it does not answer.
        """
        self._count += 1
        said: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            said["sessionId"] = self._session
        os.write(self._to, json.dumps(said).encode() + b"\0")
        until = time.monotonic() + self._timeout
        while True:
            for heard in self._hear(until):
                if heard.get("id") == said["id"]:
                    if "error" in heard:
                        raise RuntimeError(f"{method}: {heard['error']}")
                    return heard["result"]

    def open(self, address: str, size: tuple[int, int] = WIDE, *, dark: bool = False, settle: float = 0.05) -> None:
        """Open a page and wait until it has loaded and its own scripts have had a moment."""
        self.look(size, dark=dark)
        self.requests, self.complaints, self._loaded = [], [], False
        self.call("Page.navigate", url=address)
        until = time.monotonic() + self._timeout
        while not self._loaded:
            list(self._hear(until))
        self.run("document.fonts.ready.then(() => true)")
        time.sleep(settle)
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def look(self, size: tuple[int, int], *, dark: bool = False) -> None:
        """Size of the window, and whether the system is dark."""
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])

    def run(self, script: str) -> Any:
        """Value of an expression in the page; a promise is waited for."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(str(done["exceptionDetails"].get("exception", done["exceptionDetails"])))
        return done["result"].get("value")

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Keep what is seen as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """The page as it would be printed, on A4."""
        done = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)
        return base64.b64decode(done["data"])

    @property
    def strangers(self) -> list[str]:
        """Requests for anything but files and what a page holds itself."""
        return [r for r in self.requests if not r.startswith(HARMLESS)]

    def _hear(self, until: float) -> list[dict[str, Any]]:
        """What has arrived; waits for the first of it."""
        parts: list[bytes] = []
        while len(parts) < 2:
            try:
                data = os.read(self._from, 1 << 20)
            except BlockingIOError:
                data = None
            if data == b"":
                raise RuntimeError(f"{FOUND} has ended")
            self._rest += data or b""
            parts = self._rest.split(b"\0")
            if data is None and len(parts) < 2:
                if time.monotonic() > until:
                    raise TimeoutError(f"no answer within {self._timeout:g} seconds")
                time.sleep(0.002)
        *whole, self._rest = parts
        heard = [json.loads(x) for x in whole]
        for one in heard:
            self._note(one.get("method", ""), one.get("params", {}))
        return heard

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(params["url"])
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            self.complaints.append(f"loading failed: {params['errorText']}")
        elif method == "Runtime.exceptionThrown":
            told = params["exceptionDetails"]
            self.complaints.append(str(told.get("exception", {}).get("description") or told["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
