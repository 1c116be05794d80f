"""One sidecar process of the chaos harness, restarted under the same instance id."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class ChaosSidecar:
    """One process of the lane, restarted under the same instance id; counters of all its lives."""

    name: str
    directory: Path
    settings: dict[str, Any]
    seed: int
    process: asyncio.subprocess.Process | None = None
    reader: asyncio.Task[None] | None = None
    lives: list[dict[str, Any]] = field(default_factory=list)

    async def start(self) -> None:
        """The process runs; it joins the group on its own time."""
        log = os.open(self.directory / f"{self.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "dev.chaos_worker", json.dumps(self.settings)),
                *("--seed", str(self.seed + len(self.lives))),
                cwd=self.directory,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        self.lives.append({})
        self.reader = asyncio.create_task(self._read(self.lives[-1]), name=f"read {self.name}")

    async def end(self, how: signal.Signals, timeout_s: float = 30.0) -> None:
        """The process has ended: by this signal, or by SIGKILL after the timeout."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(how)
        try:
            await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        if self.reader is not None:
            await self.reader

    def signal(self, which: signal.Signals) -> None:
        """Sent, if the process lives."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(which)

    def count(self, name: str) -> int:
        """The sum of this counter over all lives, as last reported by each."""
        return sum(life.get(name, 0) for life in self.lives)

    @property
    def reasons(self) -> list[str]:
        """Return what its lane and its partitions waited for when it last reported."""
        return list(self.lives[-1].get("reasons", ())) if self.lives else []

    async def _read(self, counters: dict[str, Any]) -> None:
        if self.process is None or self.process.stdout is None:
            return
        async for line in self.process.stdout:
            counters.update(json.loads(line))
