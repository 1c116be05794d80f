"""Durations, numbers of things and foreign names as people read them, in a terminal, on the page and in the log."""

from __future__ import annotations

NAME_MAX = 64  # characters of a name that somebody else chose

_STEPS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))


def duration(seconds: float) -> str:
    """A length of time in at most two units: `40 s`, `12 min 5 s`, `10 h 43 min`, `3 d 4 h`."""
    for size, unit, part, smaller in _STEPS:
        if seconds >= size - part / 2:
            whole, rest = divmod(int(seconds / part + 0.5), size // part)
            return f"{whole} {unit} {rest} {smaller}" if rest else f"{whole} {unit}"
    return f"{int(seconds + 0.5)} s" if seconds >= 0.5 else "under 1 s"


def outlook(p50_s: float | None, p90_s: float | None, due_s: float | None, verdict: str) -> str:
    """When a job is due and when it will be done, both from now. None is not known, or no deadline."""
    if p50_s is None:
        end = "end not known yet"
    else:
        latest = f", at most {duration(p90_s)} in nine cases of ten" if p90_s is not None else ""
        end = f"done in about {duration(p50_s)}{latest}"
    if due_s is None:
        return f"no deadline, {end}"
    due = f"due in {duration(due_s)}" if due_s >= 0 else f"was due {duration(-due_s)} ago"
    return f"{due}, {end}" if verdict == "unknown" else f"{due}, {end}, {verdict}"


def counted(number: int, thing: str) -> str:
    """How many of a thing there are: `1 item`, `5000 items`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def verb(number: int) -> str:
    """What goes with a number of things: `is` or `are`."""
    return "is" if number == 1 else "are"


def printable(name: str) -> str:
    """A name that somebody else chose, on one line, without anything that a terminal would obey."""
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name[:NAME_MAX])
    return shown if len(name) <= NAME_MAX and len(shown) <= NAME_MAX else f"{shown[:NAME_MAX]}…"
