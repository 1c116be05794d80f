"""Whether all is well, and if not why, in a sentence: the top of the status page and of `sidecar status --watch`.

Everything here is read off the status document, so that the page, the terminal and a test say the same. A banner says
what is wrong and since when, what callers get meanwhile, and what is to be done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.telemetry.wording import duration, printable

LEVELS = ("ok", "note", "warn", "bad")
LATE_SHARE = 0.05  # the objective is one of the 95th percentile
LATE_MIN = 20  # first tokens in the last minute, before a share of them says anything
DOWN = "down: "  # how the fault of an engine begins that says why it is down, with advice
STARTING_S = 30.0  # a lane that starts for longer is worth a line

WHY_HELD = {  # by Limit; a value that is not here is shown as it is
    "down": "the engine is down",
    "online waits": "online requests wait for what comes free",
    "reserved dispatch": "its reserved dispatch needs more than is free",
    "slots": "every slot is taken",
    "foreign": "others use the engine, or its gauges cannot be read",
    "headroom": "the free slots are kept for online",
    "yield": "online answers are being written",
    "price": "more would cost online more than was stated",
    "tenant": "its tenants have all the slots that they may have",
    "window": "a freed slot waits a moment for online",
    "kv": "the KV cache is full",
    "prefill": "another offline prompt is being computed",
    "too large": "the next item does not fit this engine",
}
_BROKERS = "Start the brokers, or correct offline.bootstrap_servers. It goes on by itself."
WHAT_TO_DO = {  # by Cause of the offline lane
    "none": "Nothing: it goes on by itself.",
    "assignment": "Nothing, if it lasts seconds. Else look for other members of the group that hang.",
    "opening": "Nothing, if it lasts seconds.",
    "unreachable": _BROKERS,
    "authentication": "Correct the name, password or token in offline.security.",
    "tls": "Correct the certificates in offline.security, or the brokers'.",
    "secret": "Make the file of the password, token or certificate readable.",
    "rights": "Give the user of this sidecar the right that is named (docs/kafka.md).",
    "topic_missing": "Create the topic that is named: `sidecar topics` shows how.",
    "partition_missing": "Give the topic that is named as many partitions as the requests topic has.",
    "no_offset": "Say where to begin: `sidecar offsets`, or offline.first_start.",
    "position_lost": "The log no longer holds the committed offset. Look for what was lost, then `sidecar offsets`.",
    "foreign_metadata": "Another program commits to this group: stop it, or choose another group.",
    "progress_unreadable": "The progress topic holds records of another program: choose another topic.",
    "instance_in_use": "Another process runs under this instance_id: stop it, or choose another id.",
    "fenced": "Nothing: another sidecar has taken the partition over.",
    "record_refused": "The topic refuses even a short dead letter: raise its max.message.bytes.",
    "stuck": "Nothing: the consumer is made anew.",
    "kafka": "Look at the log of this sidecar and of the brokers. It tries again by itself.",
    "defect": "This is a fault of the sidecar: keep its log, report it, and restart it.",
}
_ONLINE_UNTOUCHED = "Online callers notice nothing. Items stay in Kafka: none is lost, and none runs twice."


def verdict(document: Mapping[str, Any]) -> dict[str, Any]:
    """`level`, `text` (one sentence) and `banners` of a status document, the worst first."""
    found = sorted(_banners(document), key=lambda each: -LEVELS.index(each["level"]))
    worst = found[0]["level"] if found else "ok"
    text = _all_well(document) if worst in ("ok", "note") else f"{found[0]['title']}."
    return {"level": "ok" if worst == "note" else worst, "text": text, "banners": found}


def why_held(limit: str) -> str:
    """Why offline gets no more now, in words; "" if nothing holds it."""
    return "" if limit in ("none", "no offline") else WHY_HELD.get(limit, limit)


def banner(level: str, title: str, text: str, *, callers: str = "", act: str = "") -> dict[str, Any]:
    """One banner: what is wrong, why, what callers get, what to do."""
    return {"level": level, "title": title, "text": text, "callers": callers, "act": act}


def _banners(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if document["state"] == "draining":
        yield banner(
            "warn",
            "Shutting down",
            _runs(document["in_flight"]),
            callers="New requests get UNAVAILABLE. What runs is finished.",
        )
    yield from _engines(document)
    yield from _overload(document)
    yield from _late(document)
    if (offline := document.get("offline")) is not None:
        yield from _offline(offline)
    yield from _jobs(document)
    recorder = document.get("recorder")
    if recorder is not None and recorder["state"] != "running":
        missing = counted(recorder["dropped"], "decision")
        yield banner("note", "The recorder has stopped", f"{recorder['state']}; {missing} are in no file.")


def _runs(in_flight: int) -> str:
    return "Nothing runs any more." if not in_flight else f"{counted(in_flight, 'request')} still run."


def _engines(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    engines = document["engines"]
    for name, engine in engines.items():
        if not engine["up"]:
            told_down = (each.removeprefix(DOWN) for each in engine.get("faults", ()) if each.startswith(DOWN))
            others = any(each["up"] for each in engines.values() if each["model"] == engine["model"])
            since = f" for {duration(engine['since_s'])}" if engine["since_s"] is not None else ""
            yield banner(
                "warn" if others else "bad",
                f"Engine {printable(name)} has been down{since}" if since else f"Engine {printable(name)} is down",
                next(told_down, engine["reason"] or "Nobody has reached it yet."),
                callers="Other engines of the model serve them."
                if others
                else "They get UNAVAILABLE at once. Items wait, with the tokens that they have.",
                act="Look at Triton and its log. The sidecar asks again every few seconds, and goes on by itself.",
            )
        for fault in engine.get("faults", ()):
            if fault.startswith(DOWN):
                continue  # told above
            yield banner("warn", f"Engine {printable(name)} is not as it should be", fault)


def _overload(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    recent = document.get("recent") or {}
    if recent.get("refusing_s") is None:
        return
    online = [each for each in document["lanes"] if each["lane"] == "online"]
    waiting = sum(each["waiting"] for each in online)
    oldest_s = max((each["oldest_age_s"] for each in online), default=0.0)
    waits = f" {counted(waiting, 'request')} wait, the oldest for {_seconds(oldest_s)}." if waiting else ""
    yield banner(
        "bad",
        f"Overload for {duration(recent['refusing_s'])}: more online requests come than the engines can serve",
        f"{counted(recent['refused'], 'online request')} {'was' if recent['refused'] == 1 else 'were'} refused in the"
        f" last minute.{waits}",
        callers="Who is refused gets RESOURCE_EXHAUSTED, with a hint when to try again.",
        act="Add an engine, or let the caller who sends most send less: the tenants below say who that is.",
    )


def _late(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    recent = document.get("recent") or {}
    if recent.get("began", 0) < LATE_MIN or recent["late"] <= LATE_SHARE * recent["began"]:
        return
    objective = document["objective"]["ttft_ms"]
    yield banner(
        "warn",
        f"Online is late: {recent['late'] / recent['began']:.0%} of the first tokens miss their objective",
        f"In the last minute 95 of 100 came within {_latency(recent['ttft_p95_ms'])}; the objective is"
        f" {_latency(objective)}.",
        act="Compare with the slots: with offline beside it, state a lower price; without, the engine is too small.",
    )


def _offline(offline: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    phase, _, detail = str(offline["state"]).partition(": ")
    since_s, cause = offline.get("since_s"), str(offline.get("reason", "none"))
    since = f" for {duration(since_s)}" if since_s is not None else ""
    title = {
        "stopped": f"The offline lane has been stopped{since}",
        "waiting": f"The offline lane has been waiting{since}",
        "degraded": f"A part of the offline lane has been waiting{since}",
    }.get(phase)
    if title is not None:
        level = "bad" if phase == "stopped" else "warn"
        yield banner(
            level, title, detail or cause, callers=_ONLINE_UNTOUCHED, act=WHAT_TO_DO.get(cause, WHAT_TO_DO["kafka"])
        )
    elif phase == "starting" and (since_s or 0) > STARTING_S:
        yield banner(
            "note", f"The offline lane has been starting{since}", detail or cause, act=WHAT_TO_DO["assignment"]
        )


def _jobs(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for job in document["jobs"]:
        if job["verdict"] not in ("at risk", "infeasible") or job["deadline_in_s"] is None:
            continue
        name = f"Job {printable(job['job'])}" if job["job"] else "What waits without a job"
        told = "cannot be done in time" if job["verdict"] == "infeasible" else "may be late"
        left = job["deadline_in_s"]
        due = f"It is due in {duration(left)}" if left >= 0 else f"It was due {duration(-left)} ago"
        end = f", and done in about {duration(job['eta_p50_s'])}" if job["eta_p50_s"] is not None else ""
        yield banner(
            "warn",
            f"{name} of {printable(job['tenant'])} {told}",
            f"{due}{end}.",
            act="Give it more time, or a larger weight, or more engines.",
        )


def _all_well(document: Mapping[str, Any]) -> str:
    online, offline = _online_now(document), _offline_now(document)
    if not online and not offline:
        return "All is well, and nothing runs: nobody asks for anything."
    return f"All is well: {online or 'nobody is online'}, and {offline or 'nothing offline waits'}."


def _online_now(document: Mapping[str, Any]) -> str:
    recent = document.get("recent") or {}
    if recent.get("ttft_p95_ms") is not None:
        objective = document["objective"]["ttft_ms"]
        return f"95 of 100 online answers begin within {_latency(recent['ttft_p95_ms'])} (of {_latency(objective)})"
    running = sum(each["slots_online"] for each in document["engines"].values())
    return f"{counted(running, 'online request')} run{'s' if running == 1 else ''}" if running else ""


def _offline_now(document: Mapping[str, Any]) -> str:
    engines = list(document["engines"].values())
    running, slots = sum(each["slots_offline"] for each in engines), sum(each["slots"] for each in engines)
    if running:
        return f"offline has {running} of {counted(slots, 'slot')}"
    if any(each["waiting"] for each in document["lanes"] if each["lane"] == "offline"):
        limit = next((each["limit_binding"] for each in engines if each["up"]), "down")
        return f"offline waits because {why_held(limit) or 'it has just come'}"
    return ""


def _latency(milliseconds: float) -> str:
    return f"{milliseconds:,.0f} ms" if milliseconds < 1000 else _seconds(milliseconds / 1000)


def counted(number: int, thing: str) -> str:
    """`1 request`, `1,024 requests`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
