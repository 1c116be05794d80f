"""Overview: is all well, and if not, which board says why."""

from __future__ import annotations

from typing import Any

from dev.boards.board import board
from dev.boards.panel import Panel, lines, low_is_bad, stat, states
from dev.boards.query import highest, lowest, of, per, percentiles, rate, total

TTFT, TPOT = "gen_ai_server_time_to_first_token_seconds", "gen_ai_server_time_per_output_token_seconds"
OFFLINE_IS = {  # of each limit: how the verdict row puts it; limits of other versions do no harm
    "none": "nothing",
    "down": "an engine that is down",
    "no offline": "nothing: no item waits",
    "online waits": "online requests that wait",
    "reserved dispatch": "a reserved dispatch that needs room",
    "slots": "full slots",
    "foreign": "load of others",
    "headroom": "slots kept for online",
    "yield": "online requests beside it",
    "price": "the price that online may pay",
    "tenant": "tenants' slot limits",
    "window": "the window for online",
    "kv": "KV cache",
    "prefill": "other offline prompts",
    "too large": "items too large for this engine",
}


def overview() -> dict[str, Any]:
    """Return the board."""
    rows = {
        "Verdict": _verdict() + _end_and_alerts(),
        "Who has the slots": _slots(),
        "Online against its objective": _online(),
        "What is harvested": _harvest(),
    }
    return board(
        "overview", "Overview", "Is all well? The first row says it.", rows, variables=("model", "lane", "objective")
    )


def _verdict() -> list[Panel]:
    good = rate("sidecar_slo_events_total", over="5m", slo="$objective", verdict="good")
    return [
        stat(
            "Engine",
            lowest("sidecar_engine_ready"),
            words={"0": ("Engine down", "red"), "1": ("Serving", "green")},
            board="engine",
            shows="Whether every engine takes requests.",
            do="If one is down, the engine board says how long it has been silent; /readyz says why. Callers "
            "get UNAVAILABLE.",
        ),
        stat(
            "Online within its objective",
            per(good, rate("sidecar_slo_events_total", over="5m", slo="$objective")),
            "percentunit",
            decimals=1,
            steps=low_is_bad(0.9, 0.95),
            board="costs",
            size=(5, 4),
            shows="Share of online requests of the last five minutes that met the chosen objective.",
            do="Below 95 %: open 'Who pays what'. It says whether offline work is the cause; if so, offline "
            "yields by itself.",
        ),
        stat(
            "Offline is held by",
            f"{highest('sidecar_limit_binding', 'limit')} == 1",
            legend="{{limit}}",
            names=OFFLINE_IS,
            board="jobs",
            size=(6, 4),
            shows="The rule that holds the offline lane back now, one for each engine.",
            do="Most are as wanted: online goes first. Look again if it stays 'load of others' or 'an engine "
            "that is down'.",
        ),
    ]


def _end_and_alerts() -> list[Panel]:
    firing = of("ALERTS", alertstate="firing")
    return [
        stat(
            "Backlog done at",
            f"1000 * (time() + {highest('sidecar_offline_eta_seconds')})",
            "dateTimeAsIso",
            board="jobs",
            size=(5, 4),
            shows="When the items that wait now will be done, at the rate of the last five minutes.",
            do="If that is too late, see which job is at risk, and what holds offline back. No data: the lane "
            "does not run.",
        ),
        stat(
            "Alerts",
            f'sum by (alertname) ({firing}) or label_replace(vector(0), "alertname", "none fires", "", "")',
            legend="{{alertname}}",
            shows="The alerts that fire now.",
            do="Each has a page in docs/runbooks under its name: what callers notice, where to look, what to do.",
        ),
    ]


def _slots() -> list[Panel]:
    in_use = total("sidecar_slots_in_use", "lane", lane="~$lane")
    return [
        lines(
            "Slots in use",
            {
                "{{lane}}": in_use,
                "capacity": total("sidecar_slots"),
                "reserved": total("sidecar_slots_reserved"),
            },
            stacked=True,
            dashed=("capacity", "reserved"),
            shows="Slots of the in-flight batch by lane, their number, and how many are kept free for the next "
            "online requests.",
            do="Idle slots while items wait are the price of latency. The panel beside says which rule keeps "
            "them idle.",
        ),
        states(
            "What holds offline back",
            f"{highest('sidecar_limit_binding', 'limit')} == 1",
            "{{limit}}",
            shows="Which rule bound the offline lane, over time.",
            do="'slots' all the time is a full engine: good. 'foreign' is somebody else's load: give this "
            "sidecar its own engine.",
        ),
    ]


def _online() -> list[Panel]:
    bad = rate("sidecar_slo_events_total", "slo", verdict="bad")
    refused = rate("sidecar_requests_total", "error_type", lane="online", error_type="!", outcome="!~ok|cancelled")
    return [
        lines(
            "Time to first token",
            {**percentiles(TTFT, lane="online"), "objective": highest("sidecar_slo_target_seconds", slo="ttft")},
            "s",
            exemplars=True,
            dashed=("objective",),
            shows="From the arrival of an online request to its first token, and the objective of requests "
            "that state none.",
            do="Click a dot to open that request's trace: wait_for_slot is the sidecar's share, the rest is "
            "the engine's.",
        ),
        lines(
            "Gap between tokens",
            percentiles(TPOT, lane="online"),
            "s",
            shows="Mean time per output token of online requests after their first.",
            do="It rises with the number of rows and with prompts computed beside them: see 'Who pays what'.",
        ),
        lines(
            "Requests that missed an objective",
            {"{{slo}}": per(bad, rate("sidecar_slo_events_total", "slo"))},
            "percentunit",
            steps=((None, "transparent"), (0.05, "red")),
            most=1.0,
            shows="Share of online requests that missed each objective. The promise is 95 of 100.",
            do="Above the line for minutes: the alerts say whether offline work is the cause.",
        ),
        lines(
            "Refused and failed requests",
            {"{{error_type}}": refused},
            "reqps",
            stacked=True,
            shows="Online requests that ended neither well nor by their caller, by status or reason.",
            do="queue_full: more arrives than the engine serves, add a replica. UNAVAILABLE: an engine is down.",
        ),
    ]


def _harvest() -> list[Panel]:
    busy = rate("sidecar_slot_seconds_total", "lane", lane="~$lane")
    return [
        lines(
            "Tokens",
            {"{{lane}}": rate("sidecar_tokens_total", "lane", lane="~$lane", token_type="output")},
            "tokens/s",
            stacked=True,
            shows="Output tokens per second by lane.",
            do="Offline should fill what online leaves. If both are low while items wait, see what holds offline back.",
        ),
        lines(
            "Share of the engine",
            {"{{lane}}": f"{busy} / scalar({total('sidecar_slots')})"},
            "percentunit",
            stacked=True,
            most=1.0,
            shows="Share of all slot-seconds that each lane used; what is missing to 100 % was idle.",
            do="Idle time costs rent: 'Who pays what' has it in dollars.",
        ),
        lines(
            "Requests that wait",
            {"{{lane}}": total("sidecar_queue_depth", "lane", lane="~$lane")},
            shows="Requests and items that wait in the sidecar. Items that are still in Kafka are not among them.",
            do="An online queue that grows is overload. An offline queue is as long as its settings let it be.",
        ),
        lines(
            "Oldest that waits",
            {"{{lane}}": highest("sidecar_queue_oldest_age_seconds", "lane", lane="~$lane")},
            "s",
            shows="Age of the oldest request that waits, by lane.",
            do="Online above its objective is overload. An item may be old because many wait before it.",
        ),
    ]
