"""Serves what dcgm-exporter would, so that the panels of a GPU can be tried where there is none.

Names and labels are those of dcgm-exporter 4.5; the values are made up, and move a little, so that a figure of them is
more than a flat line. What TensorRT-LLM shows comes from the CPU engine, under the same names.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterator

from aiohttp import web

DCGM = {
    "DCGM_FI_PROF_SM_ACTIVE": (0.82, 0.08),
    "DCGM_FI_PROF_SM_OCCUPANCY": (0.31, 0.03),
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": (0.22, 0.08),
    "DCGM_FI_PROF_DRAM_ACTIVE": (0.61, 0.1),
    "DCGM_FI_DEV_FB_USED": (72_118.0, 0.0),
    "DCGM_FI_DEV_POWER_USAGE": (312.0, 24.0),
}


def dcgm(now_s: float, cards: int = 2) -> str:
    """Return what dcgm-exporter would show."""
    lines = []
    for name, (middle, swing) in DCGM.items():
        lines.append(f"# TYPE {name} gauge")
        for card in range(cards):
            labels = f'gpu="{card}",UUID="GPU-{card}",device="nvidia{card}",modelName="A100-SXM4-80GB",Hostname="gpu-0"'
            value = middle + swing * math.sin(now_s / (17 + 3 * card) + len(name))
            lines.append(f"{name}{{{labels}}} {value:.4f}")
    return "\n".join(lines) + "\n"


@contextlib.asynccontextmanager
async def stand_ins() -> AsyncIterator[dict[str, list[str]]]:
    """It is served; the block gets the job that Prometheus should scrape."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=dcgm(time.time()))

    application = web.Application()
    application.router.add_get("/metrics", page)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield {"dcgm": [f"{host}:{port}"]}
    finally:
        await runner.cleanup()
