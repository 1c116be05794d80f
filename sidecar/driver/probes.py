"""Whether each engine is up and why not, and its gauges: asked at a bounded rate, told to the driver as events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from sidecar.core.events import EngineUp, Measured
from sidecar.driver.driver import Driver
from sidecar.driver.hang_watch import HangWatch
from sidecar.errors import EngineError, StreamBrokenError
from sidecar.settings.file import EngineEndpoint
from sidecar.triton.client import EngineClient
from sidecar.triton.engine_size import EngineSize, look_at_size, of_gauges, size_faults, size_warnings
from sidecar.triton.gauges import EngineScrape, block_fault, measure

PERIOD_S = 1.0  # also how soon a restarted engine gets work again
TIMEOUT_S = 3.0
FAILURES_MAX = 3  # in a row: a slow answer of a busy server is no outage, and an outage breaks its streams off
SAY_AGAIN_S = 30.0  # an engine that stays down for another reason is told of again, this often at most

logger = logging.getLogger(__name__)
SLOW = "DEADLINE_EXCEEDED"  # how the reason of a probe begins that was not answered in time

Changed = Callable[[str, bool, str], None]  # an engine's name, whether it is up, and why not ("" if it is up)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProbes:
    """What the last probes said of one engine."""

    up: bool
    reason: str  # why it is down, as the last probe said it; "" if it is up
    since_s: float  # in seconds of the driver's clock


class Prober:
    """Keeps one engine's health. `changed` hears each change of it, after the driver."""

    def __init__(
        self,
        driver: Driver,
        engine: EngineEndpoint,
        client: EngineClient,
        changed: Changed,
        *,
        look_now: asyncio.Event | None = None,
    ) -> None:
        """Whoever sets `look_now` asks for a probe at once."""
        self.health = EngineProbes(up=False, reason="not probed yet", since_s=driver.now_s)
        self.block_fault = ""  # how the engine's gauges contradict the settings
        self.slices_off = ""  # why offline work is not cut into slices, while it is not
        self._driver = driver
        self._engine = engine
        self._client = client
        self._changed = changed
        self._look_now = look_now or asyncio.Event()
        self._hang = HangWatch(driver.progress_timeout_s)
        self._sizes: tuple[EngineSize, ...] = ()  # as Triton said when the engine was about to come up
        self._gauge_size: EngineSize | None = None
        self._size_warnings: list[str] = []
        self._foreign_slots = 0
        self._failures = 0
        self._said = ""  # the reason that was told last
        self._said_s = 0.0

    @property
    def up(self) -> bool:
        """True if the engine takes work."""
        return self.health.up

    def look_now(self) -> None:
        """Probe at once: a stream to this engine broke."""
        self._look_now.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as http:
            while True:
                self._judge(await self._fault() or await self._refusal())
                self._look_at_reuse()
                if self._engine.metrics_url is not None:
                    self._scraped(await measure(http, self._engine))
                self._look_now.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD_S):
                        await self._look_now.wait()

    def _judge(self, fault: str) -> None:
        """Take in one probe; `fault` says why it failed, "" if it did not."""
        self._failures = self._failures + 1 if fault else 0
        gone = self._look_now.is_set() and not fault.startswith(SLOW)  # a stream broke, and nobody answers
        if not fault:
            if not self.up:
                self._set(True, "")
        elif self.up:
            if gone or self._failures >= FAILURES_MAX:
                self._set(False, fault)
        elif not self._said:
            self._set(False, fault)
        elif fault != self.health.reason:
            self.health = EngineProbes(up=False, reason=fault, since_s=self.health.since_s)
            if self._driver.now_s - self._said_s >= SAY_AGAIN_S:
                self._tell()

    async def _refusal(self) -> str:
        """Why an engine that answers gets no work: the settings promise more than it has, or it hangs; "" = it does."""
        if not self.up:
            with contextlib.suppress(EngineError, TimeoutError):  # restricted, say: then nothing is known
                self._sizes = await look_at_size(self._client, self._engine.model, TIMEOUT_S)
        sizes = self.sizes
        if faults := size_faults(self._engine, sizes):
            return "; ".join(faults)
        if (found := size_warnings(self._engine, sizes)) != self._size_warnings:
            self._size_warnings = found
            for each in found:
                logger.warning("engine %s: %s", self._engine.name, each)
        return self._hang.look(self._driver.quiet(self._engine.name), self._driver.now_s)

    @property
    def sizes(self) -> tuple[EngineSize, ...]:
        """Return what the engine said of its size."""
        return self._sizes if self._gauge_size is None else (self._gauge_size, *self._sizes)

    def _scraped(self, scrape: EngineScrape) -> None:
        if scrape.measured.ok:
            self._gauge_size = of_gauges(scrape)
        self._hang.counted(scrape.measured.iterations, self._driver.now_s)
        self._measured(scrape.measured)

    def _measured(self, gauges: Measured) -> None:
        """Tell the driver. Say what contradicts the settings, and when load that is not ours comes and goes."""
        name, before = self._engine.name, self._foreign_slots
        self._driver.handle(gauges)
        if (fault := block_fault(self._engine, gauges)) and fault != self.block_fault:
            logger.error("engine %s: %s", name, fault)
        if gauges.tokens_per_block:
            self.block_fault = fault
        self._foreign_slots = foreign = self._driver.scheduler.foreign_slots(name)
        if foreign and not before:
            logger.warning(
                "engine %s: %d slots are in use that are not ours; offline has that many fewer. Who calls it directly?",
                *(name, foreign),
            )
        elif before and not foreign:
            logger.info("engine %s: no slot is in use that is not ours any more", name)

    def _look_at_reuse(self) -> None:
        """Say when the engine forgets too much for slices, and when they are back."""
        name, before = self._engine.name, self.slices_off
        factor, hit = self._driver.scheduler.reuse_of(name)
        if factor and before:
            self.slices_off = ""
            logger.info("engine %s: offline items run in slices again", name)
        elif not factor:
            self.slices_off = (
                f"offline items run in one piece, and their prompts too: of what resumes need only {hit:.0%} was still"
                " in the KV cache. Does the engine reuse blocks (enable_kv_cache_reuse), and has the cache room?"
            )
            if not before:
                logger.warning("engine %s: %s", name, self.slices_off)

    async def _fault(self) -> str:
        """Return why a request does not get through to the engine; "" if one does.

        Stopping an id that nobody has takes no slot, and yet it goes through the model: Triton's ready URL stays 200
        over a dead stub (measured with 2.51).
        """
        try:
            await self._client.stop(self._engine.model, "probe", TIMEOUT_S)
        except (EngineError, StreamBrokenError) as error:
            self._hang.gone()
            self._gauge_size = None
            return str(error) or type(error).__name__
        except Exception as error:  # a fault of one probe stays with it: the next one may succeed
            return f"the probe failed: {type(error).__name__}"
        return ""

    def _set(self, up: bool, reason: str) -> None:
        self.health = EngineProbes(up=up, reason=reason, since_s=self._driver.now_s)
        if up:
            self._driver.handle(EngineUp(engine=self._engine.name))
        else:
            self._driver.engine_down(self._engine.name, reason)
        self._tell()

    def _tell(self) -> None:
        self._said, self._said_s = self.health.reason, self._driver.now_s
        self._changed(self._engine.name, self.up, self.health.reason)
