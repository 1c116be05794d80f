"""The requests that are alive: each waits in the queue of its lane, backs off, or is dispatched, until it is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sidecar.core.events import DeadLetter, Ending, Finished, Reject, RejectReason
from sidecar.core.request import OFFLINE, Request
from sidecar.core.served_model import ServedModel
from sidecar.core.step import Step
from sidecar.core.timers import Timers
from sidecar.core.tracked_request import RequestState, TrackedRequest


class RequestTable:
    """All requests of one scheduler by id, and how many ended other than well."""

    __slots__ = ("_served_models", "_step", "_timers", "closing", "dead_letters", "rejects", "tracked_requests")

    def __init__(self, served_models: Mapping[str, ServedModel], timers: Timers, step: Step) -> None:
        self._served_models = served_models
        self._timers = timers
        self._step = step
        self.tracked_requests: dict[str, TrackedRequest] = {}
        self.closing = False  # nothing offline waits any more
        self.rejects: Counter[RejectReason] = Counter()
        self.dead_letters = 0

    def served_model_of(self, tracked: TrackedRequest) -> ServedModel:
        """The model that `tracked` asks for."""
        return self._served_models[tracked.request.model]

    def enqueue(self, tracked: TrackedRequest) -> None:
        """`tracked` waits from now on."""
        served, lane, now_s = self.served_model_of(tracked), tracked.request.lane, self._step.now_s
        tracked.waiting_since_s = now_s
        self._timers.waits(tracked)
        served.pace[lane].waits(now_s)
        served.queue(lane).push(tracked)
        if lane is OFFLINE:
            served.offline_grew(now_s)
            self._step.actions += served.intake()

    def refuse(self, request: Request, refusal: Reject) -> None:
        """`request`, which has just arrived, may not wait."""
        self._say(request.id, refusal, None)

    def finish(
        self, tracked: TrackedRequest, outcome: Ending | Reject | DeadLetter, alone_s: float | None = None
    ) -> None:
        """`tracked`, which waits, backs off or whose dispatch is over, is over itself."""
        served, lane, now_s = self.served_model_of(tracked), tracked.request.lane, self._step.now_s
        if tracked.state in (RequestState.WAITING, RequestState.BACKING_OFF):
            self._leave(served, tracked)
        else:
            served.pace[lane].over(now_s)
        tracked.move(RequestState.GONE)
        served.queue(lane).gone(tracked)
        if tracked.job:
            tokens = tracked.generated_tokens if outcome is Ending.COMPLETE else 0
            served.jobs.left(tracked.job, tracked.request.deadline_s, tokens, now_s - (tracked.first_token_s or now_s))
        del self.tracked_requests[tracked.request.id]
        self._say(tracked.request.id, outcome, alone_s)

    def _leave(self, served: ServedModel, tracked: TrackedRequest) -> None:
        if tracked.state is RequestState.WAITING:
            served.queue(tracked.request.lane).discard(tracked)
            served.somebody_left(tracked.request.lane)
            if tracked.request.lane is OFFLINE:
                served.offline_shrank(self._step.now_s)
        else:
            served.backing_off -= 1
        self._step.actions += served.intake()

    def _say(self, request_id: str, outcome: Ending | Reject | DeadLetter, alone_s: float | None) -> None:
        if isinstance(outcome, Reject):
            self.rejects[outcome.reason] += 1
        elif isinstance(outcome, DeadLetter):
            self.dead_letters += 1
        self._step.actions.append(Finished(request_id=request_id, outcome=outcome, alone_s=alone_s))
