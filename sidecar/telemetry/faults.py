"""What the log says of faults that a peer can cause as often as it likes: the place, once a minute, and no contents."""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from math import inf
from pathlib import Path

LOG_AGAIN_S = 60.0  # a fault at the same place is logged again no sooner


class FaultLog:
    """Logs what nobody foresaw: where, and of which kind. Not the exception's text: it may hold a prompt."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._logged_s: dict[str, float] = {}
        self._since: Counter[str] = Counter()  # as many again at the same place, not logged

    def log(self, what: str, error: BaseException) -> None:
        """One line and the frames, or nothing if the same place was logged a short while ago."""
        for leaf in leaves(error):
            frames = traceback.extract_tb(leaf.__traceback__)
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
            place = f"{type(leaf).__name__} at {where}"
            now_s = time.monotonic()
            if now_s < self._logged_s.get(place, -inf) + LOG_AGAIN_S:
                self._since[place] += 1
                continue
            more = f" ({self._since.pop(place)} more since it was last logged)" if place in self._since else ""
            self._logged_s[place] = now_s
            self._logger.error("%s failed: %s%s\n%s", what, place, more, "".join(traceback.format_list(frames)))


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group, or the one that is none."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    else:
        yield error


_NO_FILE_LEFT = (
    "socket.accept() out of system resource",
    "Exception in callback BaseSelectorEventLoop._start_serving",  # tried again, and meanwhile it was closed
)


def no_bad_encoding(record: logging.LogRecord) -> bool:
    """False where grpc.aio quotes metadata that is not UTF-8: whoever sent it is refused by its name."""
    return not str(record.msg).startswith("Invalid encoding on")


class NoFileLeft(logging.Filter):
    """Lets asyncio say once a minute that a connection could not be taken, for want of file descriptors.

    It says so over a hundred times for each try, with a traceback: megabytes in a minute.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logged_s = -inf

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a repetition."""
        if not str(record.msg).startswith(_NO_FILE_LEFT):
            return True
        now_s = time.monotonic()
        if now_s < self._logged_s + LOG_AGAIN_S:
            return False
        self._logged_s = now_s
        return True
