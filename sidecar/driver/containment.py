"""Where faults end. Whom the driver only tells (calls, listeners, callbacks) keeps its own; one of the core ends all.

A fault of the first kind is counted, and said once. After one of the core nothing can be trusted: its books and what is
done may differ.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from sidecar.core.events import Event, Woke
from sidecar.core.scheduler import Scheduler

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class Containment:
    """Runs what may have a fault of its own. `faults` counts what was raised, by who raised it and the kind of error.

    Listeners and calls must not wait and must not raise. One that raises all the same would otherwise keep the actions
    after it from being carried out, and its slot would leak.
    """

    def __init__(self) -> None:
        self.faults: Counter[tuple[str, str]] = Counter()

    def run(self, who: str, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
        """Return what `function` returns; None if it raised."""
        try:
            return function(*arguments, **named)
        except Exception as error:  # any: it belongs to `who`, whose next call may succeed
            self.note(who, error)
            return None

    def note(self, who: str, error: Exception) -> None:
        """Count a fault of `who`. Only the first of its kind is logged: the next ones say nothing new."""
        kind = type(error).__name__
        self.faults[who, kind] += 1
        if self.faults[who, kind] == 1:
            logger.error("%s failed: %s; more of them are only counted", who, place_of(error))


class EventQueue:
    """Hands events to `step`, which asks the scheduler and obeys, up to the first fault; then `broke` is called.

    It keeps the scheduler's timer, too: what a deadline brings is an event like any other.
    """

    def __init__(self, scheduler: Scheduler, step: Callable[[Event], None], broke: Callable[[], None]) -> None:
        self.broken: Exception | None = None  # the fault
        self._scheduler = scheduler
        self._step = step
        self._broke = broke
        self._events: deque[Event] = deque()
        self._handling = False
        self._timer: asyncio.TimerHandle | None = None
        self._woken_at_s: float | None = None

    def put(self, event: Event) -> None:
        """Handle `event` after those that wait already: an action may cause events. Raises nothing."""
        if self.broken is not None:
            return
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events and self.broken is None:
                self._step(self._events.popleft())
            self._arm()
        except Exception as error:
            self._fail(error)
        finally:
            self._handling = False

    def ask(self, question: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
        """Return what the scheduler answers; None if it fails, which is a fault of the core."""
        try:
            return question(*arguments, **named)
        except Exception as error:
            self._fail(error)
            return None

    def wake(self) -> None:
        """The scheduler's deadline has come."""
        self._woken_at_s = None
        self.put(Woke())

    def close(self) -> None:
        """No deadline comes any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        """Set the timer to the scheduler's next deadline."""
        deadline_s = self._scheduler.next_deadline_s()
        if deadline_s == self._woken_at_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._woken_at_s, self._timer = deadline_s, None
        if deadline_s is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline_s, self.wake)

    def _fail(self, error: Exception) -> None:
        if self.broken is None:
            self.broken = error
            self._broke()
            logger.critical("the driver ends, because its core failed: %s", place_of(error))


def place_of(error: BaseException) -> str:
    """The kind of an error and where it was raised. Not its message, which may hold a prompt or an output."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    code = trace.tb_frame.f_code
    return f"{type(error).__name__} at {'/'.join(Path(code.co_filename).parts[-3:])}:{trace.tb_lineno} ({code.co_name})"
