"""Watches every engine: probes it, looks at the models beside the probed one, and says each change in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from sidecar.driver.driver import Driver
from sidecar.driver.probes import EngineProbes, Prober
from sidecar.settings.file import EngineEndpoint
from sidecar.triton.advice import with_advice
from sidecar.triton.client import EngineClient
from sidecar.triton.models import Unscheduled

VERSION_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


class EngineWatch:
    """The probers of all engines. `changed` hears the name of an engine that goes up or down, after the driver."""

    def __init__(
        self,
        driver: Driver,
        engines: Sequence[EngineEndpoint],
        clients: Mapping[str, EngineClient],
        unscheduled: Unscheduled,
        *,
        suspected: Mapping[str, asyncio.Event],
        changed: Callable[[str, bool], None],
    ) -> None:
        """`suspected` holds an event for each engine. Whoever sets it asks for a probe at once."""
        self._engines = {each.name: each for each in engines}
        self._clients = clients
        self._unscheduled = unscheduled
        self._changed = changed
        self._probers = {
            name: Prober(driver, each, clients[name], self._hear, look_now=suspected[name])
            for name, each in self._engines.items()
        }
        self._told: dict[str, EngineProbes] = {}  # what was said of each engine last
        self._tasks: asyncio.TaskGroup | None = None

    def health(self, name: str) -> EngineProbes | None:
        """Return what was said of this engine last, or None if nothing was said yet."""
        return self._told.get(name)

    def faults(self, name: str) -> list[str]:
        """Return what is wrong with this engine, in words."""
        prober = self._probers[name]
        down = "" if prober.up else f"down: {with_advice(prober.health.reason)}"
        said = (down, self._unscheduled.faults.get(name, ""), prober.block_fault, prober.slices_off)
        return [each for each in said if each]

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._unscheduled.run(), name="models")
            for name, prober in self._probers.items():
                tasks.create_task(prober.run(), name=f"probe {name}")

    def _hear(self, name: str, up: bool, reason: str) -> None:
        engine, prober = self._engines[name], self._probers[name]
        fields = {"engine": name, "model": engine.model, "target": engine.target, "up": up}
        if up:
            logger.info("engine %s is up: model %s at %s", name, engine.model, engine.target, extra=fields)
        else:
            told = with_advice(reason)
            logger.warning(
                "engine %s is down: model %s at %s: %s", name, engine.model, engine.target, told, extra=fields
            )
        self._changed(name, up)
        self._told[name] = prober.health
        if up:
            self._unscheduled.look_soon(name)
            assert self._tasks is not None  # only a prober that runs says so
            # It may be another Triton than before.
            self._tasks.create_task(self._clients[name].look_up_version(VERSION_TIMEOUT_S), name=f"version of {name}")
