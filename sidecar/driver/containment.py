"""Faults of those whom the driver only tells (calls, listeners, callbacks) stay with them: counted, and said once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

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
        """What `function` returns; None if it raised."""
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


def place_of(error: BaseException) -> str:
    """The kind of an error and where it was raised. Not its message, which may hold a prompt or an output."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    code = trace.tb_frame.f_code
    return f"{type(error).__name__} at {'/'.join(Path(code.co_filename).parts[-3:])}:{trace.tb_lineno} ({code.co_name})"
