"""Jobs and tenants: what is done and left, whether it is in time, and whether each gets its share."""

from __future__ import annotations

from typing import Any

from dev.boards.board import board
from dev.boards.panel import Panel, bars, high_is_bad, lines, stat, table
from dev.boards.query import grown, highest, lowest, of, per, rate, together, total


def jobs() -> dict[str, Any]:
    """Return the board."""
    rows = {
        "Verdict": _verdict(),
        "Jobs": _jobs() + _jobs_over_time(),
        "Tenants": _tenants(),
        "Reserved dispatches: offline is never starved": _reserved(),
    }
    text = "What is done, failed and left of each job, when it will be done, and what each tenant gets."
    return board("jobs", "Jobs and tenants", text, rows, variables=("model", "lane", "tenant"))


def _verdict() -> list[Panel]:
    return [
        stat(
            "Jobs at risk",
            f"{total('sidecar_job_at_risk')} or vector(0)",
            steps=high_is_bad(1, 5),
            size=(5, 4),
            shows="Jobs that will probably miss their deadline.",
            do="See them in the table below. A weight for their tenant, or one replica more, helps; urgency "
            "rises by itself.",
        ),
        stat(
            "Deadlines missed",
            grown("sidecar_deadlines_total", verdict="missed", lane="~$lane"),
            steps=high_is_bad(1, 10),
            decimals=0,
            size=(5, 4),
            shows="Requests and items with a deadline that ended after it, in the chosen time.",
            do="Compare with those that were met, below. Items that expire are dead letters with the reason 'expired'.",
        ),
        stat(
            "Items left",
            f"{total('sidecar_kafka_lag')} or vector(0)",
            board="kafka",
            size=(5, 4),
            shows="Items between the watermark and the end of their partitions.",
            do="It should fall while items run. If not, see what holds the offline lane back.",
        ),
        stat(
            "Worst window",
            lowest("sidecar_worst_window_share_ratio"),
            "percentunit",
            decimals=1,
            size=(4, 4),
            shows="The smallest share that offline got of a window of dispatches that both lanes wanted.",
            do="It is at least what reservation_every promises while no window is broken (beside).",
        ),
        stat(
            "Windows broken",
            total("sidecar_window_violations_total"),
            steps=high_is_bad(1, 2),
            size=(5, 4),
            shows="Windows in which offline got less than promised, since the start.",
            do="0 is the promise. Anything else is a defect: keep the recorded decisions and report it.",
        ),
    ]


def _jobs() -> list[Panel]:
    names, tenant = "tenant, job_name", "~$tenant"
    ended = of("sidecar_job_ended_items_total", tenant=tenant, outcome="done")
    failed = of("sidecar_job_ended_items_total", tenant=tenant, outcome="failed")
    return [
        table(
            "Jobs",
            {
                "in the sidecar": (total("sidecar_job_items", names, tenant=tenant), "short"),
                "done": (together("sum", ended, names), "short"),
                "failed": (together("sum", failed, names), "short"),
                "done in": (_needed(names), "s"),
                "due in": (lowest("sidecar_job_deadline_seconds", names, tenant=tenant), "s"),
                "at risk": (highest("sidecar_job_at_risk", names, tenant=tenant), "bool_yes_no"),
            },
            keys=("tenant", "job_name"),
            shows="Each job that has items here or ended some: fifty at most, late ones first.",
            do="At risk: give its tenant more weight, or more replicas to the topic. Items carry a job in the "
            "header x-job.",
        ),
    ]


def _needed(by: str) -> str:
    """Return the time that jobs need in nine of ten cases, or, while that is not known, as likely as not."""
    known = (highest("sidecar_job_eta_seconds", by, tenant="~$tenant", percentile=each) for each in ("p90", "p50"))
    return " or ".join(known)


def _jobs_over_time() -> list[Panel]:
    return [
        lines(
            "Time left against time needed",
            {
                "{{job_name}} needs": _needed("job_name"),
                "{{job_name}} is due in": lowest("sidecar_job_deadline_seconds", "job_name", tenant="~$tenant"),
            },
            "s",
            shows="How long each job still takes (in nine of ten cases, once that is known), and how long it may take.",
            do="While 'needs' is below 'is due in' the job is in time. Urgency raises the share of offline as "
            "they meet.",
        ),
        lines(
            "Deadlines",
            {"{{verdict}}": rate("sidecar_deadlines_total", "verdict", lane="~$lane")},
            "reqps",
            stacked=True,
            shows="Requests with a deadline that ended, by whether they met it.",
            do="Missed ones of a job that cannot make it are refused early with on_deadline: expire.",
        ),
        lines(
            "Items that ended",
            {"{{outcome}}": rate("sidecar_offline_items_total", "outcome")},
            "reqps",
            stacked=True,
            shows="Items by their end, and retries.",
            do="More than a few dead letters: the Kafka board has the reasons.",
        ),
        lines(
            "Cancelled",
            {"{{lane}}": rate("sidecar_requests_total", "lane", lane="~$lane", outcome="cancelled")},
            "reqps",
            shows="Requests that their caller gave up, and items that were taken back.",
            do="Many cancelled online requests mean callers with timeouts shorter than the queue.",
        ),
    ]


def _tenants() -> list[Panel]:
    chosen = {"lane": "~$lane", "tenant": "~$tenant"}
    got = rate("sidecar_tenant_tokens_total", "lane, tenant", over="5m", **chosen)
    of_lane = rate("sidecar_tenant_tokens_total", "lane", over="5m", lane="~$lane")
    weight = highest("sidecar_tenant_weight", "lane, tenant", lane="~$lane")
    served = rate("sidecar_tenant_tokens_total", "lane, tenant", over="5m", lane="~$lane")
    active = f"({weight} and on (lane, tenant) ({served} > 0))"
    fair = f"{active} / on (lane) group_left () sum by (lane) ({active})"
    return [
        lines(
            "Tokens by tenant",
            {"{{tenant}} {{lane}}": rate("sidecar_tenant_tokens_total", "lane, tenant", **chosen)},
            "tokens/s",
            stacked=True,
            shows="What each tenant is served, prompts and outputs.",
            do="Tenants that wait share by their weights. One that has nothing waiting leaves its share to the others.",
        ),
        bars(
            "Share against weight",
            f"({got} / on (lane) group_left () ({of_lane} > 0)) / on (lane, tenant) ({fair})",
            "{{tenant}} {{lane}}",
            "none",
            steps=((None, "orange"), (0.8, "green"), (1.25, "blue")),
            size=(12, 8),
            shows="A tenant's share of its lane's tokens, divided by its share of the weights of those that "
            "were served.",
            do="1 is fair. Below 1 with requests that wait (beside) for long: look at its slots_max.",
        ),
        lines(
            "Waiting by tenant",
            {"{{tenant}} {{lane}}": total("sidecar_tenant_waiting", "lane, tenant", **chosen)},
            shows="Requests of each tenant that wait in the sidecar.",
            do="One tenant with thousands does not slow the others: each is served by its weight.",
        ),
        lines(
            "Slots by tenant",
            {"{{tenant}} {{lane}}": total("sidecar_tenant_slots", "lane, tenant", **chosen)},
            stacked=True,
            shows="Slots that each tenant has.",
            do="A tenant at its slots_max is held by 'tenants' slot limits' although slots may be free.",
        ),
    ]


def _reserved() -> list[Panel]:
    offline = rate("sidecar_contended_dispatches_total", lane="offline")
    return [
        lines(
            "Reserved dispatches",
            {"{{result}}": grown("sidecar_reserved_dispatches_total", "result", over="$__rate_interval")},
            shows="Dispatches that offline was owed: due, then taken, postponed, or lapsed because nothing waited.",
            do="Many postponed ones: items are too large for the room that online leaves.",
        ),
        lines(
            "Offline's share where both lanes wanted a slot",
            {"share": per(offline, rate("sidecar_contended_dispatches_total"))},
            "percentunit",
            most=1.0,
            shows="Which share of contended dispatches the offline lane got.",
            do="1 in reservation_every, and more while a job is late.",
        ),
        lines(
            "Longest time without a dispatch",
            {
                "without a dispatch, at most since the start": highest("sidecar_starvation_gap_seconds"),
                "a due dispatch may be put off": highest("sidecar_offline_max_wait_seconds"),
            },
            "s",
            dashed=("a due dispatch may be put off",),
            shows="How long the lane ever went without a dispatch while items waited, and what the settings allow.",
            do="Minutes, with an engine that is up: docs/runbooks/OfflineHeldTooLong.md.",
        ),
        lines(
            "Stopped for online",
            {
                "preempted": rate("sidecar_preemptions_total"),
                "yielded": rate("sidecar_yields_total"),
                "dispatched": rate("sidecar_dispatches_total", lane="offline"),
            },
            "ops",
            shows="Offline dispatches that were stopped: for slots or KV cache, or because online requests "
            "were resident.",
            do="Stopped work goes on from its tokens. See 'Tokens computed twice' on the engine board for what "
            "that costs.",
        ),
    ]
