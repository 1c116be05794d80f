"""Whether each engine is up, and its gauges: asked at a bounded rate, told to the driver as events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from typing import Protocol

import aiohttp

from sidecar.core.events import EngineUp, Measured
from sidecar.edge.driver import Driver
from sidecar.edge.engine_client import EngineClient
from sidecar.edge.errors import EngineError, StreamBrokenError

PERIOD_S = 1.0  # also how soon a restarted engine gets work again
TIMEOUT_S = 3.0
FAILURES_MAX = 3  # in a row: a slow answer of a busy server is no outage, and an outage breaks its streams off

logger = logging.getLogger(__name__)
SLOW = "DEADLINE_EXCEEDED"  # how the reason of a probe begins that was not answered in time


class EngineAddress(Protocol):
    """What a prober has to know of an engine."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def metrics_url(self) -> str | None: ...


class Prober:
    """Keeps one engine's state. `changed` hears each change, after the driver."""

    def __init__(
        self, driver: Driver, engine: EngineAddress, client: EngineClient, changed: Callable[[str, bool], None]
    ) -> None:
        self.up = False
        self._driver = driver
        self._engine = engine
        self._client = client
        self._changed = changed
        self._look_now = asyncio.Event()
        self._foreign_slots = 0

    def look_now(self) -> None:
        """A stream to this engine broke: probe at once."""
        self._look_now.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        failures = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as http:
            while True:
                reason = await self._fault()
                failures = failures + 1 if reason else 0
                gone = self._look_now.is_set() and not reason.startswith(SLOW)  # a stream broke, and nobody answers
                if self.up and reason and (gone or failures >= FAILURES_MAX):
                    self._set(False, reason)
                elif not self.up and not reason:
                    self._set(True, "")
                if self._engine.metrics_url is not None:
                    self._measured(await measure(http, self._engine))
                self._look_now.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD_S):
                        await self._look_now.wait()

    def _measured(self, gauges: Measured) -> None:
        """The driver knows them. Load that is not ours is said when it comes and when it goes."""
        name, before = self._engine.name, self._foreign_slots
        self._driver.handle(gauges)
        self._foreign_slots = foreign = self._driver.scheduler.foreign_slots(name)
        if foreign and not before:
            logger.warning(
                "engine %s: %d slots are in use that are not ours; offline has that many fewer. Who calls it directly?",
                *(name, foreign),
            )
        elif before and not foreign:
            logger.info("engine %s: no slot is in use that is not ours any more", name)

    async def _fault(self) -> str:
        """Why a request does not get through to the engine; "" if one does.

        Stopping an id that nobody has takes no slot, and yet it goes through the model: Triton's ready URL stays 200
        over a dead stub (measured with 2.51).
        """
        try:
            await self._client.stop(self._engine.model, "probe", TIMEOUT_S)
        except (EngineError, StreamBrokenError) as error:
            return str(error)
        return ""

    def _set(self, up: bool, reason: str) -> None:
        self.up = up
        name = self._engine.name
        if up:
            self._driver.handle(EngineUp(engine=name))
        else:
            self._driver.engine_down(name, reason)
        self._changed(name, up)


_GAUGE = re.compile(r'^(nv_trt_llm_\w+)\{(?=[^}]*model="([^"]+)")[^}]*?(?:_type)="(\w+)"[^}]*\} ([0-9.e+-]+)', re.M)


async def measure(http: aiohttp.ClientSession, engine: EngineAddress) -> Measured:
    """The engine's gauges; `ok=False` if they cannot be had."""
    try:
        async with http.get(str(engine.metrics_url)) as response:
            response.raise_for_status()
            return parse_gauges(engine.name, engine.model, await response.text())
    except (aiohttp.ClientError, TimeoutError):
        return Measured(engine=engine.name, ok=False)


def parse_gauges(engine: str, model: str, text: str) -> Measured:
    """The `nv_trt_llm_*` families of this model on a Prometheus page (TensorRT-LLM, custom_metrics_reporter.cc)."""
    found: Mapping[tuple[str, str], int] = {
        (family, kind): int(float(value)) for family, of_model, kind, value in _GAUGE.findall(text) if of_model == model
    }
    blocks = "nv_trt_llm_kv_cache_block_metrics"
    return Measured(
        engine=engine,
        ok=True,
        active_requests=found.get(("nv_trt_llm_request_metrics", "active")),
        kv_blocks_max=found.get((blocks, "max")),
        kv_blocks_free=found.get((blocks, "free")),
        tokens_per_block=found.get((blocks, "tokens_per")),
    )
