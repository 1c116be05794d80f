"""Whether requests are served now: which engines are up, and whether the sidecar drains."""

from __future__ import annotations

import asyncio


class Readiness:
    """One state for gRPC's health service, for ServerReady and for ModelReady, so that they cannot disagree."""

    def __init__(self) -> None:
        self.up: set[str] = set()  # names of engines
        self.draining = False
        self.over = False  # whoever watches has heard the last
        self.changed = asyncio.Event()  # set at the next change. Take it before you read the state, and you miss none

    @property
    def serving(self) -> bool:
        """True if new requests are taken."""
        return bool(self.up) and not self.draining

    def engine_is(self, name: str, up: bool) -> None:
        """This engine is up, or down, from now on."""
        (self.up.add if up else self.up.discard)(name)
        self._tell()

    def drain(self) -> None:
        """No new request is taken any more."""
        self.draining = True
        self._tell()

    def end(self) -> None:
        """Nothing changes any more: whoever watches may go."""
        self.over = True
        self._tell()

    def _tell(self) -> None:
        told, self.changed = self.changed, asyncio.Event()
        told.set()
