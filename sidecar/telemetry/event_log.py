"""One line of the log for each event that matters to somebody: with its trace, at most some a minute for one reason.

The first of a reason is told at once; those of the next ten seconds are counted, and told with the trace of the last
one. What an engine says is told by its code alone: its text may hold a prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from sidecar.call import Outcome, Timeline
from sidecar.core.events import Action, Arrived, DeadLetter, Event, Failed, Finished, Lost, Preempt, Reject
from sidecar.core.request import Lane, Request
from sidecar.telemetry.wording import printable

logger = logging.getLogger(__name__)
EVERY_S = 10.0
REASONS_MAX = 200  # that are remembered; an engine's codes are few, yet nobody promises that


@dataclass(slots=True, eq=False)
class Muted:
    """What was not told since the last line of one reason."""

    told_s: float
    count: int = 0
    level: int = logging.INFO
    message: str = ""
    fields: dict[str, Any] | None = None


class EventLog:
    """A listener of the driver. `trace_of` gives the trace id of a request that is alive; "" = it has none."""

    def __init__(self, ttft_objective_ms: float, trace_of: Callable[[str], str]) -> None:
        self._objective_ms = ttft_objective_ms
        self._trace_of = trace_of
        self._requests: dict[str, tuple[Request, str]] = {}  # those alive, and their traces
        self._muted: dict[str, Muted] = {}
        self._look_s = inf  # when something that was counted is due

    def handled(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """Tell what went wrong."""
        match event:
            case Arrived(request=request):
                self._requests[request.id] = request, self._trace_of(request.id)
            case Failed(request_id=request_id, reason=reason):
                code = printable(reason.partition(":")[0])
                self._tell(
                    now_s, f"failed {code}", logging.WARNING, f"the engine failed a dispatch: {code}", request_id
                )
            case Lost(request_id=request_id):
                self._tell(now_s, "lost", logging.WARNING, "the stream of a dispatch broke", request_id)
            case _:
                pass
        for action in actions:
            match action:
                case Preempt(request_id=request_id):
                    self._tell(now_s, "preempted", logging.DEBUG, "stopped a row for online", request_id)
                case Finished(request_id=request_id, outcome=Reject(reason=reason)):
                    self._tell(now_s, f"refused {reason}", logging.WARNING, f"refused a request: {reason}", request_id)
                case Finished(request_id=request_id, outcome=DeadLetter(reason=text)):
                    code = printable(text.partition(":")[0])
                    self._tell(now_s, f"dead {code}", logging.WARNING, f"gave up a request: {code}", request_id)
                case _:
                    pass
        if now_s >= self._look_s:
            self._look(now_s)

    def finished(self, request: Request, timeline: Timeline, outcome: Outcome) -> None:
        """Tell an online answer that began late. Its trace is kept, so there is something to open."""
        if request.lane is Lane.ONLINE and timeline.began_late(request, self._objective_ms):
            assert timeline.first_token_s is not None
            took_ms = 1000 * (timeline.first_token_s - timeline.arrived_s)
            allowed_ms = request.ttft_objective_ms or self._objective_ms
            self._tell(
                timeline.finished_s or timeline.first_token_s,
                "late",
                logging.INFO,
                f"an online answer began late: after {took_ms:,.0f} ms of {allowed_ms:,.0f}",
                request.id,
                outcome=outcome.outcome,
                waited_ms=round(1000 * timeline.queue_wait_s, 1),
            )
        self._requests.pop(request.id, None)

    def _tell(self, now_s: float, reason: str, level: int, message: str, request_id: str, **more: Any) -> None:
        """One line, or one more that is counted."""
        if not logger.isEnabledFor(level):
            return
        fields = {"reason": reason, **self._fields(request_id), **more}
        if (muted := self._muted.get(reason)) is None:
            self._muted[reason] = Muted(now_s)
            if len(self._muted) > REASONS_MAX:
                del self._muted[next(iter(self._muted))]
            logger.log(level, "%s", message, extra=fields)
            return
        muted.count += 1
        muted.level, muted.message, muted.fields = level, message, fields
        self._look_s = min(self._look_s, muted.told_s + EVERY_S)
        if now_s >= self._look_s:
            self._look(now_s)

    def _look(self, now_s: float) -> None:
        """Tell what was counted and is due; a reason that was quiet for so long is told at once the next time."""
        for reason, muted in list(self._muted.items()):
            if now_s < muted.told_s + EVERY_S:
                continue
            if not muted.count:
                del self._muted[reason]
                continue
            more = muted.count - 1
            since = f" (and {more:,} more in the last {now_s - muted.told_s:.0f} s)" if more else ""
            logger.log(muted.level, "%s%s", muted.message, since, extra={**(muted.fields or {}), "more": more})
            self._muted[reason] = Muted(now_s)
        due = [each.told_s + EVERY_S for each in self._muted.values()]
        self._look_s = min(due, default=inf)

    def _fields(self, request_id: str) -> dict[str, Any]:
        """What tells whose it is, and where to look further."""
        if (known := self._requests.get(request_id)) is None:
            return {"request_id": request_id}
        request, trace_id = known
        found = {"request_id": request_id, "lane": str(request.lane), "tenant": request.tenant, "model": request.model}
        return found | {name: each for name, each in (("job", request.job), ("trace_id", trace_id)) if each}
