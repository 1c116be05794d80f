"""On which engine requests with a shared prefix are at home: rendezvous hashing with bounded load.

Each engine has a score of its own for each prefix, and the highest one wins (Thaler and Ravishankar 1998; weighted as
w / -ln u): engines and prefixes need no table, and a lost engine moves only the prefixes that were at home on it. An
engine that already has more than its share of the load by a quarter is passed over (Mirrokni et al., arXiv:1608.01350),
or a prefix that everybody uses would pile up on one engine. Nobody waits for a home: it breaks ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import ceil, log

from sidecar.core.engine import Engine

LOAD_EXCESS = 0.25
PREFIXES_MAX = 4096  # whose ranking is remembered


def score(prefix_key: str, engine: str, weight: float) -> float:
    """How much `engine` wants `prefix_key`; the same in every process."""
    digest = blake2b(f"{engine}\0{prefix_key}".encode(), digest_size=8).digest()
    return weight / -log((int.from_bytes(digest) + 1) / (2**64 + 1))


class Placement:
    """The homes of prefixes among the engines of one model."""

    __slots__ = ("_engines", "_ranked")

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._ranked: dict[str, list[Engine]] = {}

    def home(self, prefix_key: str) -> Engine | None:
        """The engine to prefer now; None without a prefix, or if all that are up have more than their share."""
        if not prefix_key or len(self._engines) < 2:
            return None
        up = [engine for engine in self._engines if engine.up]
        slots = sum(engine.settings.slots for engine in up)
        busy = sum(engine.settings.slots - engine.free.slots for engine in up) + 1
        for engine in self._ranking(prefix_key):
            share = ceil((1 + LOAD_EXCESS) * busy * engine.settings.slots / slots) if slots else 0
            if engine.up and engine.settings.slots - engine.free.slots < share:
                return engine
        return None

    def _ranking(self, prefix_key: str) -> list[Engine]:
        ranking = self._ranked.get(prefix_key)
        if ranking is None:
            if len(self._ranked) >= PREFIXES_MAX:
                self._ranked.clear()
            ranking = self._ranked[prefix_key] = sorted(
                self._engines,
                key=lambda engine: score(prefix_key, engine.settings.name, engine.settings.slots),
                reverse=True,
            )
        return ranking
