"""The servers that scenarios are played against: Triton, and a sidecar in front of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from dev.deployment import sidecar_settings
from dev.server import SidecarProcess, serving
from dev.triton import Triton, TritonError, TritonSettings, running

SLOTS = 8
ENGINE = "e0"
PARAMETERS = {"preset": "tiny", "profile": "8b-a100", "seed": "1"}  # paced, so that there is time to cancel something
ADMIN, INFERENCE = ("admin-key", "open-sesame"), ("infer-key", "let-me-in")  # of the restricted protocols
RESTRICTED = (
    f"model-repository,model-config,shared-memory,statistics,trace,logging:{ADMIN[0]}={ADMIN[1]}",
    f"inference:{INFERENCE[0]}={INFERENCE[1]}",
)
EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One address for callers, twice: Triton itself, and the sidecar in front of it."""

    direct: str
    through: str
    triton: Triton

    @property
    def incarnation(self) -> int | None:
        """Which process Triton is now; None while it is started again after a crash."""
        try:
            return self.triton.pid
        except TritonError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """The second pair, and the way to end its Triton."""

    pair: Pair
    server: SidecarProcess

    async def end_triton(self) -> None:
        """Triton is gone, and the sidecar has noticed."""
        await self.pair.triton.stop()
        while (await self.server.status())["engines"][ENGINE]["up"]:
            pass


@contextlib.asynccontextmanager
async def main_pair(directory: Path) -> AsyncIterator[Pair]:
    """Triton as it comes, and a sidecar without an offline lane."""
    settings = TritonSettings(slots=SLOTS, parameters=PARAMETERS)
    async with running(directory, settings) as triton, serving(directory, sidecar_settings(triton, {})) as server:
        yield Pair(direct=triton.target, through=server.listen, triton=triton)


@contextlib.asynccontextmanager
async def guarded_pair(directory: Path) -> AsyncIterator[Guarded]:
    """Triton with restricted protocols and explicit model control. It is not supervised: it may be ended."""
    settings = TritonSettings(slots=SLOTS, parameters=PARAMETERS, restricted=RESTRICTED, flags=EXPLICIT)
    triton = Triton(directory, settings)
    try:
        await triton.start()
        keys = dict(map(header, (ADMIN, INFERENCE)))
        async with serving(directory, sidecar_settings(triton, {"metadata": keys})) as server:
            yield Guarded(pair=Pair(direct=triton.target, through=server.listen, triton=triton), server=server)
    finally:
        await triton.stop()


def header(key: tuple[str, str]) -> tuple[str, str]:
    """What a caller sends to be let in."""
    return f"triton-grpc-protocol-{key[0]}", key[1]
