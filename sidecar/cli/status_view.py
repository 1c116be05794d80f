"""`sidecar status --watch` on a terminal: what the status page shows, drawn anew every second.

A sidecar that starts again is waited for: what was seen last stays, dimmed, with a line that says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sidecar.core.errors import SidecarError
from sidecar.telemetry.status_text import status_text
from sidecar.telemetry.wording import duration, printable

BARS = " ▁▂▃▄▅▆▇█"
CURVE = 48  # characters of a curve, a quarter of an hour
COLOURS = {"online": "#5b9be6", "offline": "#d79a41", "draining": "#b08fd6", "free": "bright_black"}
LEVELS = {"ok": ("●", "green"), "note": ("●", "blue"), "warn": ("◆", "yellow"), "bad": ("■", "red")}
VERDICTS = {"on time": ("in time", "green"), "at risk": ("at risk", "yellow"), "infeasible": ("too late", "red")}
SOFT = "bright_black"
DECISIONS_MIN, DECISIONS_MAX = 4, 20


def watch(screen: Callable[[int, int], RenderableType], console: Console, period_s: float) -> None:
    """Draw what `screen(width, height)` gives until Ctrl-C. It may raise SidecarError at any time."""
    last: RenderableType = Text("")
    since_s: float | None = None
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            try:
                last, since_s = screen(console.width, console.height), None
                live.update(last, refresh=True)
            except SidecarError as error:  # it may be starting again
                since_s = since_s or time.monotonic()
                live.update(silent(str(error), time.monotonic() - since_s, last), refresh=True)
            time.sleep(period_s)


def silent(why: str, seconds: float, last: RenderableType) -> RenderableType:
    """What is shown while nobody answers: why, since when, and what was seen last."""
    words = Text.assemble(("■ ", "red"), (printable_text(why), "bold"), (f"  for {duration(seconds)}", SOFT))
    return Group(words, Text("It is asked again every second.\n", style=SOFT), last)


def view(document: Mapping[str, Any], width: int, height: int) -> RenderableType:
    """One screen. A sidecar that says less than this one would is shown as plain `status` does."""
    if "verdict" not in document or "history" not in document:
        return Text(status_text(document))
    parts = [*_top(document), Text(""), _curves(document, width)]
    for name, engine in document["engines"].items():
        parts += [Text(""), *_slots(name, engine)]
    jobs = [each for each in document["jobs"] if each["job"] or each["deadline_in_s"] is not None]
    tenants = document["tenants"]
    if jobs:
        parts += [Text(""), _jobs(jobs[:8], document["at"])]
    if tenants:
        parts += [Text(""), _tenants(tenants[:8])]
    used = sum(len(Console(width=width, height=200).render_lines(each)) for each in parts)
    room = min(max(height - used - 3, DECISIONS_MIN), DECISIONS_MAX)
    if document["decisions"]:
        parts += [Text(""), _decisions(document["decisions"][: -room - 1 : -1])]
    return Padding(Group(*parts), (0, 1))


def _top(document: Mapping[str, Any]) -> Iterator[RenderableType]:
    verdict = document["verdict"]
    clock = _clock(document["at"], seconds=True)
    line = Table.grid(expand=True)
    line.add_column()
    line.add_column(justify="right")
    brand = Text.assemble(("sidecar ", "bold"), (f"{document['version']}, up for {duration(document['up_s'])}", SOFT))
    line.add_row(brand, Text(clock, style=SOFT))
    yield line
    sign, colour = LEVELS[verdict["level"]]
    yield Text.assemble((f"{sign} ", colour), (printable_text(verdict["text"]), "bold"))
    for each in verdict["banners"]:
        title = "" if verdict["text"] == f"{each['title']}." else each["title"]
        if title:
            sign, colour = LEVELS[each["level"]]
            yield Text.assemble((f"{sign} ", colour), printable_text(title))
        yield _banner(each)


def _banner(banner: Mapping[str, Any]) -> RenderableType:
    colour = LEVELS[banner["level"]][1]
    lines = Table.grid(padding=(0, 1))
    lines.add_column(width=9, style=colour)
    lines.add_column()
    for term, text in (("why", banner["text"]), ("callers", banner["callers"]), ("to do", banner["act"])):
        if text:
            lines.add_row(f"│ {term}", Text(printable_text(text)))
    return lines


def _curves(document: Mapping[str, Any], width: int) -> RenderableType:
    history, recent, objective = document["history"], document["recent"], document["objective"]["ttft_ms"]
    over = (recent["ttft_p95_ms"] or 0) > objective
    lanes = {lane: sum(x["waiting"] for x in document["lanes"] if x["lane"] == lane) for lane in ("online", "offline")}
    rows = [
        ("first token p95", _ms(recent["ttft_p95_ms"]), f"of {_ms(objective)}", "ttft_p95_ms", "online"),
        ("token gap p95", _ms(_last(history["gap_p95_ms"])), "", "gap_p95_ms", "online"),
        ("online", _number(_last(history["online_tokens_per_s"])), "tokens/s", "online_tokens_per_s", "online"),
        ("offline", _number(_last(history["offline_tokens_per_s"])), "tokens/s", "offline_tokens_per_s", "offline"),
        ("waiting online", f"{lanes['online']:,}", f"{lanes['offline']:,} offline", "refused", "draining"),
    ]
    table = Table.grid(padding=(0, 1))
    for number in range(5):
        table.add_column(justify="right" if number == 1 else "left", no_wrap=True)
    for number, (title, value, unit, field, lane) in enumerate(rows):
        curve, top = sparkline(history[field], max(12, min(CURVE, width - 52)))
        about = "refused, " if field == "refused" else ""
        most = f"{about}at most {_ms(top) if field.endswith('_ms') else _number(top)}" if top else ""
        style = "bold red" if not number and over else "bold"
        table.add_row(
            title, Text(value, style=style), Text(unit, style=SOFT), Text(curve, COLOURS[lane]), Text(most, SOFT)
        )
    if (usd := document.get("usd_per_hour")) is not None:
        told = ", ".join(f"{name} ${each:,.2f}" for name, each in usd.items())
        table.add_row("rent", Text(f"${sum(usd.values()):,.2f}", "bold"), Text("an hour", SOFT), Text(told, SOFT), "")
    return table


def sparkline(values: Sequence[float | None], width: int) -> tuple[str, float]:
    """A curve of so many characters, the largest value of each part of the time, and the largest of all."""
    steps = -(-len(values) // width) if values else 1
    padded = [None] * (-len(values) % steps) + list(values)
    parts = [[x for x in padded[at : at + steps] if x is not None] for at in range(0, len(padded), steps)]
    top = max((x for part in parts for x in part), default=0.0)
    signs = [
        BARS[0] if not part else BARS[1 + round((len(BARS) - 2) * max(part) / top)] if top else BARS[1]
        for part in parts
    ]
    return "".join(signs).rjust(width), top


def _slots(name: str, engine: Mapping[str, Any]) -> Iterator[RenderableType]:
    strip = Text()
    for kind in ("online", "offline", "draining", "free"):
        strip.append(("· " if kind == "free" else "■ ") * engine[f"slots_{kind}"], COLOURS[kind])
    up = "" if engine["up"] else ", down"
    yield Text.assemble("slots of ", (printable(name), "bold"), (f" ({printable(engine['model'])}{up})", SOFT))
    yield strip
    told = Text()
    for kind in ("online", "offline", "draining", "free"):
        if engine[f"slots_{kind}"]:
            told.append(f"{engine[f'slots_{kind}']} {kind}  ", COLOURS[kind])
    if engine.get("held") and engine["up"]:
        told.append(f"offline gets no more because {engine['held']}", SOFT)
    yield told
    groups: dict[tuple[str, str], list[float]] = {}
    for row in engine["rows"]:
        groups.setdefault((row["lane"], row["job"] or row["tenant"]), []).append(row["age_s"])
    if groups:
        line = Text(overflow="ellipsis", no_wrap=True)
        for (lane, owner), ages in sorted(groups.items(), key=lambda each: (each[0][0] != "online", -len(each[1]))):
            line.append(f"{len(ages)} {printable(owner)}", COLOURS[lane]).append(f" {_age(max(ages))}   ", SOFT)
        yield line


def _jobs(jobs: Sequence[Mapping[str, Any]], at: float) -> RenderableType:
    table = _table("job", "done", "failed", "left here", "due", "done at", "")
    for each in jobs:
        word, colour = VERDICTS.get(each["verdict"], ("", SOFT))
        name = Text(printable(each["job"]) or "without a job").append(f"  {printable(each['tenant'])}", SOFT)
        due, end = each["deadline_in_s"], each["eta_p50_s"]
        times = ["–" if seconds is None else _when(at + seconds, at) for seconds in (due, end)]
        counts = [_number(each.get(field)) for field in ("done", "failed")]
        table.add_row(name, *counts, f"{each['items']:,}", *times, Text(word, colour))
    return table


def _tenants(tenants: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table("tenant", "share", "by weight", "running", "waiting")
    for each in tenants:
        share, due = (_percent(each.get(name)) for name in ("share", "due"))
        table.add_row(
            Text(printable(each["tenant"]), COLOURS[each["lane"]]),
            share,
            due,
            f"{each['slots']:,}",
            f"{each['waiting']:,}",
        )
    return table


def _decisions(decisions: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style=SOFT, no_wrap=True, min_width=8)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for each in decisions:
        table.add_row(_clock(each["at"], seconds=True), Text(printable_text(each["text"]).replace("`", "")))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=SOFT)
    table.add_column(first)
    for each in others:
        table.add_column(each, justify="right")
    return table


# ---- words -----------------------------------------------------------------------------------------------------------


def printable_text(text: str) -> str:
    """A sentence that may hold foreign words, without anything that a terminal would obey."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _last(values: Sequence[float | None]) -> float | None:
    return next((each for each in reversed(values[-12:]) if each is not None), None)


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} ms" if value < 1000 else f"{value / 1000:,.1f} s"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _age(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _clock(at: float, *, seconds: bool = False) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S" if seconds else "%H:%M")


def _when(at: float, now: float) -> str:
    """A time of today is a clock time; another one says its day."""
    then = datetime.fromtimestamp(at)
    return then.strftime("%H:%M" if then.date() == datetime.fromtimestamp(now).date() else "%a %d %b %H:%M")
