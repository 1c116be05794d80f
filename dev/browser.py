"""A real Chromium without a window, spoken to by its DevTools protocol: for tests of the page, and for its pictures."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
    *("--force-color-profile=srgb", "--font-render-hinting=none"),
)
ANSWER_S = 60.0  # of a busy machine

PIXELS = """(async () => {
  const bitmap = await createImageBitmap(await (await fetch("data:image/png;base64,%s")).blob());
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const bytes = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return [bitmap.width, bitmap.height, btoa(text)];
})()"""


class BrowserError(Exception):
    """The page or the browser did not do what was asked."""


def binary() -> str | None:
    """Where a Chromium is; None if there is none here."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = count(1)
        self.requests: list[str] = []  # every address that the page has asked for
        self.complaints: list[str] = []  # what the console says of errors, the policy's refusals among them

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one command. Raises BrowserError."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(ANSWER_S):
            while True:
                message = await self._socket.receive_json()
                self._note(message)
                if message.get("id") == number:
                    if "error" in message:
                        raise BrowserError(f"{method}: {message['error']}")
                    result: dict[str, Any] = message["result"]
                    return result

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"), message.get("params", {}):
            case "Network.requestWillBeSent", {"request": {"url": url}}:
                self.requests.append(url)
            case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                self.complaints.append(str(details.get("exception", details)))
            case "Log.entryAdded", {"entry": {"level": "error", "text": text}}:
                self.complaints.append(text)
            case _:
                pass

    async def shown(
        self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False, until: str = "true"
    ) -> None:
        """The page at `url` is shown so wide, and the expression `until` has become true."""
        for part in ("Page", "Runtime", "Network", "Log"):
            await self.ask(f"{part}.enable")
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme])
        await self.ask("Emulation.setTimezoneOverride", timezoneId="UTC")
        for each in ("about:blank", url):  # by way of nothing: what was true of the last page says nothing of this one
            await self.ask("Page.navigate", url=each)
            await self.until(f"location.href === {json.dumps(each)}")
        await self.until(until)

    async def until(self, expression: str) -> None:
        """The expression has become true."""
        async with asyncio.timeout(ANSWER_S):
            while not await self.value(expression):  # noqa: ASYNC110 - a state of another process
                await asyncio.sleep(0.05)

    async def value(self, expression: str) -> Any:
        """What an expression of JavaScript is worth on the page. Raises BrowserError if it throws."""
        found = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    async def press(self, key: str) -> None:
        """A key goes down and up."""
        for kind in ("keyDown", "keyUp"):
            await self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    async def picture(self) -> bytes:
        """The whole page, as a PNG."""
        height = await self.value("document.documentElement.scrollHeight")
        width = await self.value("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        found = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(found["data"])

    async def pixels(self, png: bytes) -> tuple[int, int, bytes]:
        """Width, height and RGBA bytes of a picture: a browser reads it, so that nothing here has to."""
        await self.ask("Page.navigate", url="about:blank")
        width, height, data = await self.value(PIXELS % base64.b64encode(png).decode())
        return width, height, base64.b64decode(data)


@asynccontextmanager
async def browser(chromium: str) -> AsyncIterator[Tab]:
    """A tab of a browser that ends with it."""
    with tempfile.TemporaryDirectory(prefix="page-browser-") as profile:
        process = await asyncio.create_subprocess_exec(
            chromium,
            *FLAGS,
            f"--user-data-dir={profile}",
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(process)
            async with aiohttp.ClientSession() as http:
                async with http.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
                    address = (await answer.json())["webSocketDebuggerUrl"]
                async with http.ws_connect(address, max_msg_size=0) as socket:
                    yield Tab(socket)
        finally:
            process.kill()
            await process.communicate()


async def _port(process: asyncio.subprocess.Process) -> int:
    """The port that the browser says it listens on."""
    assert process.stderr is not None
    async with asyncio.timeout(ANSWER_S):
        while line := (await process.stderr.readline()).decode():
            if "DevTools listening on ws://" in line:
                return int(line.split("/")[2].rpartition(":")[2])
    raise BrowserError("the browser has ended before it listened")
