"""What goes to stderr: one line per event, as text or as JSON.

Our own lines are shown from INFO on, those of the libraries from WARNING on, and a library that says the same thing
over and over is heard once a minute. No line of the log holds what others wrote unescaped.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["auto", "text", "json"]
REPEATED_S = 60.0  # of a library: aiokafka tells each failed attempt to connect, several times a second
REPEATED_MAX = 500  # kinds of messages that are remembered
_COLOURS = {logging.DEBUG: "90", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31"}
_STANDARD = frozenset((*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName"))


def configure(log_format: LogFormat, *, verbose: bool, libraries: bool = True) -> None:
    """Log to stderr from here on. `auto` is for people on a terminal, and JSON elsewhere.

    `verbose` shows INFO of the libraries, and our DEBUG.

    Without `libraries` theirs are shown to the verbose alone: a command that ends tells its errors itself.
    """
    handler = _Stderr()
    auto = TerminalFormatter() if sys.stderr.isatty() else JsonFormatter()
    handler.setFormatter({"auto": auto, "json": JsonFormatter(), "text": TextFormatter()}[log_format])
    handler.addFilter(OnceAMinute(time.monotonic))
    root, ours = logging.getLogger(), logging.getLogger("sidecar")
    for each in root.handlers[:]:
        if isinstance(each, _Stderr):
            root.removeHandler(each)
    root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.WARNING if libraries else logging.CRITICAL)
    ours.setLevel(logging.DEBUG if verbose else logging.INFO)


class _Stderr(logging.StreamHandler[Any]):
    """Writes to what is stderr at the moment, not to what it was when this was made."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """Where lines go."""
        return sys.stderr


class TextFormatter(logging.Formatter):
    """`2026-11-25 08:00:00,123 WARNING sidecar.app: … (trace 4bf9…)`; a traceback follows on lines of its own."""

    def __init__(self, line: str = "%(asctime)s %(levelname)s %(name)s: %(message)s", date: str | None = None) -> None:
        super().__init__(line, date)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, with what a terminal would obey spelt out."""
        record.message = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in record.message)
        if trace_id := getattr(record, "trace_id", ""):
            record.message += f" (trace {trace_id})"
        return super().formatMessage(record)


class TerminalFormatter(TextFormatter):
    """`08:00:00 WARNING …` for whoever sits before it: the level in colour, no names of modules."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(colour)s%(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line; INFO is what a line is if it says nothing else."""
        colour = _COLOURS.get(record.levelno, "")
        record.colour = f"\x1b[{colour}m{record.levelname}\x1b[0m " if colour else ""
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `message`, further fields, and `error` with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        document |= {name: value for name, value in vars(record).items() if name not in _STANDARD | document.keys()}
        if record.exc_info:
            document["error"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


class OnceAMinute(logging.Filter):
    """Lets through what we say, and of each message of a library one a minute, with how many were left out."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, str], tuple[float, int]] = {}  # when, and how many were left out since

    def filter(self, record: logging.LogRecord) -> bool:
        """True if the record is to be shown."""
        if record.name.partition(".")[0] == "sidecar":
            return True
        key, now_s = (record.name, str(record.msg)), self._clock()
        at_s, left_out = self._said.get(key, (-REPEATED_S, 0))
        if now_s - at_s < REPEATED_S:
            self._said[key] = at_s, left_out + 1
            return False
        self._said.pop(key, None)
        self._said[key] = now_s, 0
        if len(self._said) > REPEATED_MAX:
            del self._said[next(iter(self._said))]
        if left_out:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more of this kind)", None
        return True
