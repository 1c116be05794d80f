"""Draws the pictures of docs/page.md: the status page over recorded status documents, in a real Chromium.

python -m dev.page_pictures docs/pictures
"""

from __future__ import annotations

import argparse
import asyncio
import struct
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from dev.broker import free_ports
from dev.browser import Tab, binary, browser
from dev.page_scenes import scene
from sidecar.telemetry.page import HEADERS, page

DRAWN = "document.querySelectorAll('#charts path').length > 0 && document.body.className === ''"
PICTURES = {  # file → scene, width, dark
    "page-busy": ("busy", 1200, False),
    "page-busy-dark": ("busy", 1200, True),
    "page-idle": ("idle", 1200, False),
    "page-overload": ("overload", 1200, False),
    "page-engine-down": ("engine_down", 1200, False),
    "page-lane-stopped": ("lane_stopped", 1200, True),
    "page-phone": ("busy", 390, False),
}


@asynccontextmanager
async def serving(document: Callable[[], dict[str, Any]]) -> AsyncIterator[str]:
    """The address of a page over `document()`, with the headers of the real one."""

    async def root(_request: web.Request) -> web.Response:
        return web.Response(text=page(document()), content_type="text/html", headers=HEADERS)

    async def status(_request: web.Request) -> web.Response:
        return web.json_response(document())

    app = web.Application()
    app.add_routes((web.get("/", root), web.get("/status.json", status)))
    runner, port = web.AppRunner(app), free_ports(1)[0]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()


async def draw(tab: Tab, directory: Path, names: list[str]) -> None:
    """Write these pictures."""
    shown: dict[str, Any] = {}
    async with serving(lambda: shown) as url:
        for name in names:
            recorded, width, dark = PICTURES[name]
            shown = scene(recorded)
            await tab.shown(url, width=width, height=900 if width > 600 else 844, dark=dark, until=DRAWN)
            png = small(*await tab.pixels(await tab.picture()))
            await asyncio.to_thread((directory / f"{name}.png").write_bytes, png)


def small(width: int, height: int, rgba: bytes) -> bytes:
    """A PNG of at most 256 colours: of each sixteenth of red, green and blue the most frequent one stands for all."""
    pixels = np.frombuffer(rgba, np.uint8).reshape(-1, 4)[:, :3].astype(np.int32)
    codes, inverse, counts = np.unique(pixels @ [65536, 256, 1], return_inverse=True, return_counts=True)
    colours = np.stack([codes // 65536, codes // 256 % 256, codes % 256], axis=1).astype(np.int32)
    often = np.argsort(-counts)
    _, first, cell = np.unique((colours // 16 @ [256, 16, 1])[often], return_index=True, return_inverse=True)
    together = np.bincount(cell.reshape(-1), weights=counts[often])
    palette = colours[often[first[np.argsort(-together)[:256]]]]
    nearest = np.array([np.argmin(((palette - each) ** 2).sum(axis=1)) for each in colours], np.uint8)
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = nearest[inverse.reshape(-1)].reshape(height, width)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = (
        (b"IHDR", head),
        (b"PLTE", palette.astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in parts) + chunk(b"IEND", b"")


async def _main(directory: Path, names: list[str]) -> int:
    if (chromium := binary()) is None:
        print("no Chromium here", file=sys.stderr)
        return 1
    async with browser(chromium) as tab:
        await draw(tab, directory, names)
        for each in tab.complaints:
            print(each, file=sys.stderr)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Draw them."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the status page.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--picture", choices=PICTURES, action="append")
    options = parser.parse_args(arguments)
    return asyncio.run(_main(options.directory, options.picture or list(PICTURES)))


if __name__ == "__main__":
    raise SystemExit(main())
