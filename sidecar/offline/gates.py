"""Where items wait before the scheduler: a gate per model, shut while its offline queue is at its high mark."""

from __future__ import annotations

import asyncio


class ModelGates:
    """The gates of all models. Every gate is open until it is shut."""

    def __init__(self) -> None:
        self._gates: dict[str, asyncio.Event] = {}

    def turn(self, model: str, may_take_more: bool) -> None:
        """Open the gate of `model` if the scheduler may take more of its items, else shut it."""
        gate = self._gate(model)
        if may_take_more:
            gate.set()
        else:
            gate.clear()

    async def wait(self, model: str) -> None:
        """Wait until the gate of `model` is open."""
        await self._gate(model).wait()

    def _gate(self, model: str) -> asyncio.Event:
        if model not in self._gates:
            self._gates[model] = asyncio.Event()
            self._gates[model].set()
        return self._gates[model]
