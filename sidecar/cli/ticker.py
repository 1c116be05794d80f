"""How far a command is, on one line of a terminal that is written over, or now and then on a line of a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TextIO

from sidecar.offline.item_file import ItemLines
from sidecar.telemetry.wording import duration

LOOK_S = 0.25  # between two times on a terminal
LOG_S = 10.0  # between two lines where it is none
BAR_CHARS = 24


class Ticker:
    """Tells how many of `total` are done, at what rate, and how long the rest will take. Call `end` before others
    write."""

    def __init__(self, what: str, total: int | None = None, stream: TextIO | None = None) -> None:
        self._what = what
        self.total = total
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._begun_s = time.monotonic()
        self._first: int | None = None  # done before it began to tell: no part of the rate
        self._told_s = self._begun_s
        self._width = 0

    def tell(self, done: int, *, extra: str = "") -> None:
        """So many are done now. Most calls write nothing."""
        now_s = time.monotonic()
        if self._first is None:
            self._first = done
        if now_s - self._told_s < (LOOK_S if self._terminal else LOG_S):
            return
        self._told_s = now_s
        text = self.text(done, now_s - self._begun_s) + extra
        if self._terminal:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def text(self, done: int, passed_s: float) -> str:
        """The line: `sent [#####…] 52,000 of 100,000 (52 %), 21,300/s, 2 s left`."""
        rate = (done - (self._first or 0)) / passed_s if passed_s > 0 else 0.0
        pace = f", {rate:,.0f}/s" if rate >= 10 else f", {rate:.2g}/s" if rate > 0 else ""
        if not self.total:
            return f"{self._what} {done:,}{pace}"
        share = min(done / self.total, 1.0)
        bar = ("#" * round(share * BAR_CHARS)).ljust(BAR_CHARS, ".")
        left = f", {duration((self.total - done) / rate)} left" if rate > 0 and done < self.total else ""
        return f"{self._what} [{bar}] {done:,} of {self.total:,} ({share:.0%}){pace}{left}"

    def end(self) -> None:
        """The next line of anybody begins at the left."""
        if self._terminal and self._width:
            self._stream.write("\n")
            self._stream.flush()
        self._width = 0


class Ticking:
    """A file of items whose reading is told, as long as `ticker` is there."""

    def __init__(self, file: ItemLines, ticker: Ticker | None) -> None:
        self.ticker = ticker
        self._file = file

    @property
    def name(self) -> str:
        """The file's name."""
        return self._file.name

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The file's lines."""
        for number, value in self._file.lines():
            if self.ticker is not None:
                self.ticker.tell(number)
            yield number, value
