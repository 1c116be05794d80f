"""The last decisions in words, newest last: `stopped 12 rows of weekly: an online request arrived`.

What repeats within two seconds is one line with a number, so that the list holds minutes also where sixty-four slots
change hands. Only what somebody may ask about is here: each dispatch of each slice would drown it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from sidecar.core.deadlines import JobVerdict
from sidecar.core.events import (
    Abort,
    Action,
    Arrived,
    Closing,
    DeadLetter,
    Dispatch,
    Ending,
    EngineDown,
    EngineUp,
    Event,
    Finished,
    Forecast,
    Lost,
    PauseIntake,
    Preempt,
    Reject,
    RejectReason,
    ResumeIntake,
)
from sidecar.core.request import DispatchKind, Lane, Request
from sidecar.telemetry.wording import counted, printable

KEPT = 60
TOGETHER_S = 2.0  # after the last of the same
LINE_S = 10.0  # that one line stands for, at most
LOOK_BACK = 6  # lines in which the same decision is looked for
OWNERS_MAX = 4  # names in a line
REASON_MAX = 160  # characters of what an engine or a client library says

_REFUSED = {
    RejectReason.QUEUE_FULL: "the queue is full",
    RejectReason.UNKNOWN_MODEL: "no engine serves that model",
    RejectReason.TOO_LARGE: "more than an engine holds",
    RejectReason.ENGINE_DOWN: "no engine is up",
    RejectReason.EXPIRED: "the deadline passed before there was a slot",
    RejectReason.CLOSING: "this sidecar is shutting down",
}
_VERDICTS = {
    JobVerdict.ON_TIME: "will be done in time",
    JobVerdict.AT_RISK: "may be late",
    JobVerdict.INFEASIBLE: "cannot be done in time",
}


@dataclass(slots=True, eq=False)
class DecisionLine:
    """One line, as often as it was decided: `stopped` 12 `row`s of `weekly`: `an online request arrived`."""

    began_s: float
    last_s: float
    kind: str  # stop, resume, reserve, refuse, dead, lost, engine, intake, job, close
    verb: str
    thing: str = ""  # what is counted; "" = nothing, and the verb says it all
    why: str = ""
    owners: Counter[str] = field(default_factory=Counter)

    @property
    def text(self) -> str:
        """The line for people. Names stand between backticks."""
        if not self.thing:
            return self.verb
        most = self.owners.most_common(OWNERS_MAX)
        told = f"{self.verb} {counted(self.owners.total(), self.thing)}"
        if len(self.owners) == 1:
            told += f" of `{most[0][0]}`"
        else:
            more = "" if len(self.owners) <= OWNERS_MAX else ", …"
            told += f" ({', '.join(f'{count} of `{owner}`' for owner, count in most)}{more})"
        return f"{told}: {self.why}" if self.why else told


class Decisions:
    """Keeps the last lines. Times in seconds of the loop's clock."""

    def __init__(self) -> None:
        self._lines: deque[DecisionLine] = deque(maxlen=KEPT)
        self._stopped: set[str] = set()  # requests that were stopped, and have not gone on yet
        self._verdicts: dict[tuple[str, str, str], JobVerdict] = {}

    def take(self, now_s: float, event: Event, actions: Sequence[Action], requests: Mapping[str, Request]) -> None:
        """One more event, and what was decided. `requests` are those alive, those that end with it included."""
        match event:
            case EngineUp(engine=engine):
                self._say(now_s, "engine", f"engine `{printable(engine)}` is up")
            case EngineDown(engine=engine, reason=reason):
                self._say(now_s, "engine", f"engine `{printable(engine)}` is down: {one_line(reason)}")
            case Closing():
                self._say(now_s, "close", "shutting down: no new request is taken")
            case Lost(request_id=request_id) if request_id in requests:
                self._count(now_s, "lost", "lost the stream of", "request", _owner(requests[request_id]), "it broke")
            case _:
                pass
        for action in actions:
            self._decided(now_s, action, event, requests)

    def document(self, now_s: float, at: float) -> list[dict[str, Any]]:
        """The lines with their clock times: `at` is what the clock on the wall says at `now_s`."""
        return [
            {"at": round(at - (now_s - each.began_s), 3), "kind": each.kind, "text": each.text} for each in self._lines
        ]

    def _decided(self, now_s: float, action: Action, event: Event, requests: Mapping[str, Request]) -> None:
        match action:
            case Preempt(request_id=request_id):
                self._stopped.add(request_id)
                why = "an online request arrived" if _is_online(event) else "online needs the room"
                self._count(now_s, "stop", "stopped", "row", _named(requests, request_id), why)
            case Dispatch(request_id=request_id, kind=kind):
                self._dispatched(now_s, request_id, kind, requests)
            case Finished(request_id=request_id, outcome=outcome):
                self._stopped.discard(request_id)
                self._finished(now_s, requests.get(request_id), outcome)
            case Forecast():
                self._foreseen(now_s, action)
            case PauseIntake(model=model):
                self._say(now_s, "intake", f"takes no more items for `{model}`: enough of them wait here")
            case ResumeIntake(model=model):
                self._say(now_s, "intake", f"takes items for `{model}` again")
            case Abort():
                pass
            case _:
                assert_never(action)

    def _dispatched(self, now_s: float, request_id: str, kind: DispatchKind, requests: Mapping[str, Request]) -> None:
        stopped = request_id in self._stopped
        self._stopped.discard(request_id)
        if kind is DispatchKind.RESERVED:
            owner = _named(requests, request_id)
            self._count(now_s, "reserve", "ran", "reserved row", owner, "a reserved dispatch was due")
        elif stopped:
            self._count(now_s, "resume", "resumed", "row", _named(requests, request_id))

    def _finished(self, now_s: float, request: Request | None, outcome: Ending | Reject | DeadLetter) -> None:
        if request is None:
            return
        match outcome:
            case Reject(reason=reason):
                self._count(now_s, "refuse", "refused", f"{request.lane} request", _owner(request), _REFUSED[reason])
            case DeadLetter(reason=reason):
                code = one_line(reason.partition(":")[0])  # what follows is the engine's text, which may hold a prompt
                self._count(now_s, "dead", "gave up", "item", _owner(request), code)
            case Ending():
                pass
            case _:
                assert_never(outcome)

    def _foreseen(self, now_s: float, forecast: Forecast) -> None:
        key = forecast.model, forecast.tenant, forecast.job
        told, before = _VERDICTS.get(forecast.verdict), self._verdicts.pop(key, None)
        self._verdicts[key] = forecast.verdict
        if len(self._verdicts) > 4 * KEPT:
            del self._verdicts[next(iter(self._verdicts))]
        if told is not None and before is not forecast.verdict and (before or told != _VERDICTS[JobVerdict.ON_TIME]):
            name = f"job `{printable(forecast.job)}`" if forecast.job else "what waits without a job"
            self._say(now_s, "job", f"{name} of `{printable(forecast.tenant)}` {told}")

    def _say(self, now_s: float, kind: str, what: str) -> None:
        self._lines.append(DecisionLine(now_s, now_s, kind, what))

    def _count(self, now_s: float, kind: str, verb: str, thing: str, owner: str, why: str = "") -> None:
        """One more line, or one more in the line that says the same."""
        same = verb, thing, why
        for line in list(self._lines)[: -LOOK_BACK - 1 : -1]:
            if (line.verb, line.thing, line.why) == same and now_s <= min(
                line.last_s + TOGETHER_S, line.began_s + LINE_S
            ):
                break
        else:
            line = DecisionLine(now_s, now_s, kind, *same)
            self._lines.append(line)
        line.last_s = now_s
        line.owners[owner] += 1


def one_line(text: str) -> str:
    """What somebody else says, on one line and not too long."""
    shown = "".join(each if each.isprintable() else " " for each in text)
    return shown if len(shown) <= REASON_MAX else f"{shown[:REASON_MAX]}…"


def _is_online(event: Event) -> bool:
    return isinstance(event, Arrived) and event.request.lane is Lane.ONLINE


def _named(requests: Mapping[str, Request], request_id: str) -> str:
    request = requests.get(request_id)
    return "a request that is gone" if request is None else _owner(request)


def _owner(request: Request) -> str:
    """The job where there is one, else the tenant."""
    return printable(request.job or request.tenant)
