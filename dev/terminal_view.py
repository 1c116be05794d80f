"""What the demo shows while it runs: the slots, the queues and the latencies so far, in a terminal or line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from dev.load import LoadResult, percentiles

LINE_EVERY_S = 5.0  # without a terminal: often enough to see progress in a log, seldom enough to read it


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is shown at one moment."""

    phase: str
    elapsed_s: float
    seconds: float
    engine: dict[str, Any]  # the engine's part of the status document
    waiting: dict[str, int]  # by lane
    offline_done: int
    load: LoadResult


class View:
    """Shows moments: redrawn in place on a terminal, one line now and then elsewhere. Use it as a context."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self._last_line = ("", 0.0)

    def __enter__(self) -> View:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays; what was drawn in place is gone."""
        if self._live:
            self._live.update(Text(""))
        self._console.print(Text(text), soft_wrap=True)

    @contextmanager
    def words(self) -> Iterator[Callable[[str], None]]:
        """Within the block what is written stays in one line, word after word, and nothing is drawn in place."""
        if self._live:
            self._live.stop()
        try:
            yield lambda text: self._console.print(Text(text), end="", soft_wrap=True)
        finally:
            if self._live:
                self._live.start()

    def show(self, moment: Moment) -> None:
        """The view shows `moment`, or a line of it if there is no terminal and it is time for one."""
        if self._live:
            self._live.update(drawn(moment))
            return
        phase, at_s = self._last_line
        if phase != moment.phase or moment.elapsed_s - at_s >= LINE_EVERY_S:
            self._last_line = (moment.phase, moment.elapsed_s)
            self.say(line(moment))


def line(moment: Moment) -> str:
    """`moment` in one line of plain text."""
    engine, ttft = moment.engine, percentiles(moment.load.ttft_ms)
    return (
        f"{moment.phase:<12} {moment.elapsed_s:4.0f}/{moment.seconds:.0f} s"
        f"  slots {engine['slots_busy']}/{engine['slots']}"
        f" (online {engine['slots_online']}, offline {engine['slots_offline']})"
        f"  waiting {moment.waiting['online']} online, {moment.waiting['offline']} offline"
        f"  TTFT p50/p99 {_ms(ttft['p50'])}/{_ms(ttft['p99'])}  offline done {moment.offline_done}"
    )


def drawn(moment: Moment) -> RenderableType:
    """`moment` as a small picture of some ten lines."""
    engine, ttft, e2e = moment.engine, percentiles(moment.load.ttft_ms), percentiles(moment.load.e2e_ms)
    done = min(1.0, moment.elapsed_s / moment.seconds)
    bar = "━" * round(40 * done)
    return Group(
        Text.assemble((f"{moment.phase.replace('_', ' '):<14}", "bold"), (bar, "cyan"), ("━" * (40 - len(bar)), "dim"),
                      f"  {moment.elapsed_s:.0f} of {moment.seconds:.0f} s"),
        Text.assemble("slots         ", *_strip(engine)),
        Text(f"waiting       online {moment.waiting['online']}, offline {moment.waiting['offline']}"),
        Text(f"online        {moment.load.sent} sent, {len(moment.load.errors)} failed"
             f"   TTFT p50 {_ms(ttft['p50'])}, p99 {_ms(ttft['p99'])}   end to end p50 {_ms(e2e['p50'])}"),
        Text(f"offline       {moment.offline_done} items done"),
        Text(f"reservation   {engine['contended']} contended dispatches;"
             f" {engine['reserved_taken']} of {engine['reserved_due']} reserved dispatches taken"),
        Text(f"offline held  {engine['limit_binding']}"),
    )  # fmt: skip


def _strip(engine: dict[str, Any]) -> list[tuple[str, str]]:
    """One cell per slot."""
    return [
        ("■ " * engine["slots_online"], "bright_cyan"),
        ("■ " * engine["slots_offline"], "green"),
        ("▒ " * engine["slots_draining"], "yellow"),
        ("· " * engine["slots_free"], "dim"),
        (f"  {engine['slots_online']} online, {engine['slots_offline']} offline, {engine['slots_draining']} draining, "
         f"{engine['slots_free']} free", ""),
    ]  # fmt: skip


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
