"""What a recording itself says of the time that it covers: its own figures, not those of a simulation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidecar.core.events import (
    Action,
    Arrived,
    Cancelled,
    DeadLetter,
    Dispatch,
    Ended,
    Event,
    Failed,
    Finished,
    Lost,
    Preempt,
    Progressed,
    Reject,
    Stopped,
)
from sidecar.core.request import DispatchKind, Lane, Request
from sidecar.core.tracked_request import TrackedRequest
from sidecar.sim.figures import percentiles


@dataclass(slots=True)
class _Alive:
    request: Request
    tokens: int = 0  # kept so far
    running: Dispatch | None = None
    first_token_seen: bool = False


@dataclass(slots=True, eq=False)
class RecordedFigures:
    """Counts what happened. A first token is as late as the tick of the driver that told it, at most 10 ms."""

    ttft_ms: list[float] = field(default_factory=list)
    e2e_ms: list[float] = field(default_factory=list)
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    preemptions: int = 0
    contended: int = 0
    offline_of_contended: int = 0
    offline_tokens: int = 0
    _alive: dict[str, _Alive] = field(default_factory=dict)

    def begin(self, tracked_requests: Iterable[TrackedRequest]) -> None:
        """These requests are alive when the recording begins."""
        for tracked in tracked_requests:
            begun = tracked.generated_tokens > 0 or tracked.first_token_s is not None
            self._alive[tracked.request.id] = _Alive(tracked.request, tracked.generated_tokens, first_token_seen=begun)

    def take(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """One more record."""
        match event:
            case Arrived(request=request):
                self._alive[request.id] = _Alive(request)
            case Progressed(first_tokens=requests):
                for request_id in requests:
                    self._first_token(request_id, now_s)
            case Ended() | Stopped() | Lost():
                over = any(isinstance(each, Finished) and each.request_id == event.request_id for each in actions)
                self._over(now_s, event, over=over)
            case Failed(request_id=request_id) if request_id in self._alive:
                alive = self._alive[request_id]
                alive.running = None
                if alive.request.lane is Lane.ONLINE:
                    self.failed += 1
                    del self._alive[request_id]
            case Cancelled(request_id=request_id) if request_id in self._alive:
                self.cancelled += self._alive.pop(request_id).request.lane is Lane.ONLINE
            case _:
                pass
        for action in actions:
            self._decided(action)

    def _decided(self, action: Action) -> None:
        match action:
            case Dispatch():
                if action.contended:
                    self.contended += 1
                    self.offline_of_contended += action.kind is not DispatchKind.ONLINE
                if (alive := self._alive.get(action.request_id)) is not None:
                    alive.running = action
            case Preempt():
                self.preemptions += 1
            case Finished(request_id=request_id, outcome=Reject()):
                alive = self._alive.pop(request_id, None)
                self.refused += alive is not None and alive.request.lane is Lane.ONLINE
            case Finished(request_id=request_id, outcome=DeadLetter()):
                self._alive.pop(request_id, None)
            case _:
                pass

    def _first_token(self, request_id: str, now_s: float) -> None:
        alive = self._alive.get(request_id)
        if alive is not None and not alive.first_token_seen and alive.request.lane is Lane.ONLINE:
            alive.first_token_seen = True
            self.ttft_ms.append(1000 * (now_s - alive.request.arrived_s))

    def _over(self, now_s: float, event: Ended | Stopped | Lost, *, over: bool) -> None:
        """A dispatch is over: the request is `over` with it, or waits with the tokens it keeps."""
        if (alive := self._alive.get(event.request_id)) is None:
            return
        filled = alive.running is not None and alive.running.prompt_tokens is not None  # only the cache: no token
        alive.running = None
        if alive.request.lane is Lane.ONLINE:
            if isinstance(event, Lost):
                self.failed += 1
            else:
                self.e2e_ms.append(1000 * (now_s - alive.request.arrived_s))
            del self._alive[event.request_id]
            return
        if filled:
            return
        alive.tokens += event.output_tokens
        self.offline_tokens += event.output_tokens
        if over:
            del self._alive[event.request_id]
        elif not alive.request.resumable:
            self.offline_tokens -= alive.tokens
            alive.tokens = 0

    def document(self, seconds: float) -> dict[str, Any]:
        """The figures, as those of a simulated run are told."""
        return {
            "online": {
                "n": len(self.e2e_ms),
                "refused": self.refused,
                "cancelled": self.cancelled,
                "failed": self.failed,
                "ttft_ms": percentiles(self.ttft_ms),
                "e2e_ms": percentiles(self.e2e_ms),
            },
            "offline_tokens_per_s": round(self.offline_tokens / seconds, 2) if seconds else 0.0,
            "offline_waiting": sum(
                each.running is None and each.request.lane is Lane.OFFLINE for each in self._alive.values()
            ),
            "preemptions": self.preemptions,
            "contended": self.contended,
            "offline_contended_share": self.offline_of_contended / self.contended if self.contended else None,
        }
