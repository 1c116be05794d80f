"""What becomes of a dispatch that is over: its slots are free, and its request is over, waits anew, or is tried
again."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.core.admission import CLOSING, CUT_OFF
from sidecar.core.engine import Engine
from sidecar.core.events import DeadLetter, Ended, Ending, Failed, Lost, Stopped
from sidecar.core.request import ONLINE, EndReason
from sidecar.core.request_table import RequestTable
from sidecar.core.served_model import ServedModel
from sidecar.core.settings import SchedulerSettings
from sidecar.core.step import Step
from sidecar.core.timers import Hold, Timers
from sidecar.core.tracked_request import RequestState, TrackedRequest

RETRY_BACKOFF_MAX_S = 30.0


class DispatchEnds:
    """Takes in the terminal events. Each method returns the model in which there may be more to dispatch now.

    Each raises ValueError if the request is not dispatched.
    """

    __slots__ = ("_engines", "_requests", "_served_models", "_settings", "_step", "_timers", "retries")

    def __init__(
        self,
        settings: SchedulerSettings,
        engines: Mapping[str, Engine],
        served_models: Mapping[str, ServedModel],
        requests: RequestTable,
        timers: Timers,
        step: Step,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._served_models = served_models
        self._requests = requests
        self._timers = timers
        self._step = step
        self.retries = 0

    def confirmed(self, event: Ended | Stopped, reason: EndReason) -> ServedModel:
        """The engine confirmed the end of a dispatch: the slots are free; what is not complete waits again."""
        tracked, engine, served = self._running(event.request_id)
        now_s, stopped, alone_s = self._step.now_s, isinstance(event, Stopped), self._alone_s(tracked, engine)
        engine.confirmed(tracked, now_s, event.reused_tokens, event.output_tokens, stopped=stopped)
        if tracked.request.lane is ONLINE and tracked.state is RequestState.RUNNING:
            engine.attribution.complete(tracked, now_s)
        self._finish(tracked, engine, served)
        self._keep(served, tracked, event.output_tokens)
        if (ending := _ending(tracked, reason)) is not None:
            self._requests.finish(tracked, ending, alone_s)
        else:
            tracked.attempts = tracked.losses = 0
            self._again(engine, tracked)
        return served

    def failed(self, event: Failed) -> ServedModel:
        """The engine answered with an error: the slots are free, and the tokens of the dispatch are gone."""
        tracked, engine, served = self._running(event.request_id)
        alone_s = self._alone_s(tracked, engine)
        engine.counts.discarded_tokens += tracked.streamed_tokens
        self._finish(tracked, engine, served)
        tracked.attempts += 1
        if (ending := _ending(tracked, None)) is not None:
            self._requests.finish(tracked, ending, alone_s)
        elif not event.retryable or tracked.attempts >= self._settings.attempts_max:
            self._bury(tracked, event.reason)
        else:
            self._back_off(served, tracked)
        return served

    def lost(self, event: Lost) -> ServedModel:
        """The stream broke: the slots are DRAINING for a while, and what did arrive is kept."""
        tracked, engine, served = self._running(event.request_id)
        alone_s = self._alone_s(tracked, engine)
        self._finish(tracked, engine, served, held_s=engine.settings.lost_hold_s)
        self._keep(served, tracked, event.output_tokens)
        tracked.lost_on(engine.settings.name)
        tracked.losses = 0 if event.output_tokens and tracked.request.resumable else tracked.losses + 1
        if (ending := _ending(tracked, EndReason.LENGTH)) is not None:
            self._requests.finish(tracked, ending, alone_s)
        elif tracked.losses >= self._settings.losses_max:
            self._bury(tracked, f"the stream to the engine broke {tracked.losses} times without a token")
        else:
            self._again(engine, tracked)
        return served

    def release(self, hold: Hold) -> None:
        """What a dispatch held is free."""
        hold.engine.release(hold.slots, hold.kv_tokens, self._step.now_s)

    def _running(self, request_id: str) -> tuple[TrackedRequest, Engine, ServedModel]:
        """The request whose dispatch is over, and where it ran."""
        tracked = self._requests.tracked_requests.get(request_id)
        if tracked is None or not tracked.engine:
            raise ValueError(f"a terminal event for {request_id}, which is not dispatched")
        return tracked, self._engines[tracked.engine], self._served_models[tracked.request.model]

    def _alone_s(self, tracked: TrackedRequest, engine: Engine) -> float | None:
        """What an online request would have taken from its dispatch until now without offline beside it; None =
        unknown."""
        if tracked.request.lane is not ONLINE:
            return None
        return engine.attribution.alone_s(tracked, self._step.now_s)

    @staticmethod
    def _keep(served: ServedModel, tracked: TrackedRequest, tokens: int) -> None:
        """So many tokens of a dispatch that is over stay, and its tenant has paid for them."""
        tracked.keep(tokens)
        served.queue(tracked.request.lane).tenants.streamed(tracked, 0)

    def _finish(self, tracked: TrackedRequest, engine: Engine, served: ServedModel, *, held_s: float = 0.0) -> None:
        """The slots of a dispatch that is over are free, or DRAINING for `held_s` more."""
        now_s = self._step.now_s
        if tracked.state is RequestState.RUNNING:
            engine.drain(tracked)
        elif tracked.state is RequestState.PREEMPTING:
            engine.stopping -= 1
        served.queue(tracked.request.lane).finish(tracked)
        hold = Hold(engine, tracked.request.slots, engine.leave(tracked, now_s))
        if held_s > 0:
            self._timers.hold(hold, now_s + held_s)
        else:
            self.release(hold)
        if tracked.request.lane is ONLINE and not engine.online_slots:
            self._step.changed += [self._served_models[each.settings.model] for each in engine.neighbours]

    def _again(self, engine: Engine, tracked: TrackedRequest) -> None:
        """The rest of an offline request waits anew, unless it is given up."""
        if not tracked.request.resumable:
            engine.counts.discarded_tokens += tracked.generated_tokens
            tracked.generated_tokens = 0
        if not self._given_up(tracked):
            tracked.move(RequestState.WAITING)
            self._requests.enqueue(tracked)

    def _given_up(self, tracked: TrackedRequest) -> bool:
        """Reject an offline request whose dispatch is over, if it may wait no more. Return True if so."""
        if self._requests.closing:
            self._requests.finish(tracked, CLOSING)
        elif self._timers.expired(tracked.request, self._step.now_s):
            self._requests.finish(tracked, CUT_OFF)
        else:
            return False
        return True

    def _bury(self, tracked: TrackedRequest, reason: str) -> None:
        self._requests.finish(tracked, DeadLetter(reason=reason, attempts=max(tracked.attempts, tracked.losses)))

    def _back_off(self, served: ServedModel, tracked: TrackedRequest) -> None:
        if self._given_up(tracked):
            return
        tracked.move(RequestState.BACKING_OFF)
        self.retries += 1
        served.backing_off += 1
        self._step.actions += served.intake()
        delay_s = min(self._settings.retry_backoff_s * 2 ** (tracked.attempts - 1), RETRY_BACKOFF_MAX_S)
        self._timers.retry(tracked, self._step.now_s + delay_s)
        self._timers.waits(tracked)


def _ending(tracked: TrackedRequest, reason: EndReason | None) -> Ending | None:
    """How a request is over with a dispatch that ended for `reason` (None = it failed); None if it may be dispatched
    anew.

    This is the only place that knows the rule.
    """
    if reason is not None and tracked.request.is_complete(tracked.generated_tokens, reason):
        return Ending.COMPLETE
    if tracked.state is RequestState.ABORTING:
        return Ending.CANCELLED
    return Ending.INCOMPLETE if tracked.request.lane is ONLINE else None
