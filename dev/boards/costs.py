"""Who pays what: the time that offline work costs online requests, and the dollars that each lane costs."""

from __future__ import annotations

from typing import Any

from dev.boards.board import board
from dev.boards.overview import TTFT
from dev.boards.panel import Panel, bars, heat, high_is_bad, lines, stat, table
from dev.boards.query import grown, highest, mean, of, per, percentile, percentiles, rate, together, total

ADDED, SLOWDOWN, WAIT = "sidecar_interference_seconds", "sidecar_slowdown_ratio", "sidecar_queue_wait_seconds"
RENT = "If it is empty, set engines[].usd_per_hour."


def costs() -> dict[str, Any]:
    """Return the board."""
    rows = {
        "What offline work costs online requests": _verdict() + _added(),
        "Dollars": _dollars() + _dollars_over_time(),
        "Who used what": _shares(),
    }
    text = "What offline work cost each online request, and what each lane, tenant and job costs in dollars."
    return board("costs", "Who pays what", text, rows, variables=("model", "lane", "tenant"))


def _verdict() -> list[Panel]:
    added, alone = (together("avg", of(f"sidecar_online_{each}_seconds")) for each in ("added", "alone"))
    return [
        stat(
            "Added to a request",
            mean(ADDED),
            "s",
            steps=high_is_bad(0.05, 0.2),
            size=(6, 4),
            shows="Mean time that offline work added to an online request, from its slot to its end, by the "
            "prediction.",
            do="More than you want to pay: state lower objectives, or set engines[].yield_rows.",
        ),
        stat(
            "Share of a request",
            f"{added} / ({alone} > 0)",
            "percentunit",
            decimals=1,
            steps=high_is_bad(0.1, 0.3),
            size=(6, 4),
            shows="What offline work added, as a share of what requests take without it.",
            do="It is the price of the harvest: compare it with the dollars below.",
        ),
        stat(
            "Slowest twentieth",
            percentile(0.95, SLOWDOWN),
            "none",
            decimals=2,
            steps=high_is_bad(1.25, 2),
            size=(6, 4),
            shows="A request's time divided by its time without offline work: 95 of 100 are below this.",
            do="1 is no slowdown. Far above 1: click a dot of the histogram below and read that request's trace.",
        ),
        stat(
            "Trust in the prediction",
            together("min", of("sidecar_latency_model_trusted")),
            words={"0": ("not trusted", "orange"), "1": ("trusted", "green")},
            board="engine",
            size=(6, 4),
            shows="Whether the latency model's predictions are close enough to decide by.",
            do="Not trusted is normal in the first minute. Later, see the model's error on the engine board.",
        ),
    ]


def _added() -> list[Panel]:
    offline = f"{total('sidecar_slots_in_use', lane='offline')} / {total('sidecar_slots')}"
    return [
        lines(
            "Added to online requests",
            percentiles(ADDED),
            "s",
            exemplars=True,
            shows="Time from slot to end beyond the prediction without offline work.",
            do="Click a dot for the trace of that request. Steps that last are a change of load, spikes are "
            "single prompts.",
        ),
        heat(
            "Added to online requests, all of them",
            rate(f"{ADDED}_bucket", "le"),
            shows="How many requests fell into each bucket.",
            do="A second band away from zero is a group of requests that pays for all others: look for its tenant.",
        ),
        lines(
            "Mean time of an online request",
            {
                "waits for a slot": mean(WAIT, lane="online"),
                "alone": together("avg", of("sidecar_online_alone_seconds")),
                "added by offline": together("avg", of("sidecar_online_added_seconds")),
            },
            "s",
            stacked=True,
            shows="Where the time goes: the queue, the engine alone, and what offline work adds.",
            do="A large first part is overload, a large second one the engine itself, and only the third is offline's.",
        ),
        lines(
            "First token against offline work",
            {
                "TTFT p95": percentile(0.95, TTFT, lane="online"),
                "objective": highest("sidecar_slo_target_seconds", slo="ttft"),
            }
            | {"share of slots with offline": offline},
            "none",
            dashed=("objective",),
            shows="The first token's 95th percentile, and the share of the slots that offline work has.",
            do="If both rise together, offline is the cause. If only the first does, it is not: look at the queue.",
        ),
    ]


def _dollars() -> list[Panel]:
    spent, tokens = rate("sidecar_cost_usd_total", over="1h"), rate("sidecar_tokens_total", over="1h")
    return [
        stat(
            "Rent per hour",
            f"3600 * {rate('sidecar_cost_usd_total', over='5m')}",
            "currencyUSD",
            decimals=2,
            size=(6, 4),
            shows="What the engines cost now.",
            do=f"It is what the settings say. {RENT}",
        ),
        stat(
            "Idle per hour",
            f"3600 * {rate('sidecar_cost_usd_total', over='5m', lane='idle')}",
            "currencyUSD",
            decimals=2,
            size=(6, 4),
            shows="Rent of slots that nobody had.",
            do="Give the offline lane more work, or give back an engine.",
        ),
        stat(
            "A million tokens",
            f"1e6 * {per(spent, tokens)}",
            "currencyUSD",
            decimals=2,
            size=(6, 4),
            shows="All rent, idle time included, divided by all tokens of prompts and outputs of the last hour.",
            do="It falls as the idle share falls.",
        ),
        stat(
            "Harvested slot-hours",
            f"{grown('sidecar_slot_seconds_total', lane='offline')} / 3600",
            "h",
            decimals=2,
            size=(6, 4),
            shows="Slot-hours that offline work used in the chosen time, on engines that are rented anyway.",
            do="This is what the offline lane is for.",
        ),
    ]


def _dollars_over_time() -> list[Panel]:
    every = per(rate("sidecar_cost_usd_total", over="1h"), rate("sidecar_tokens_total", over="1h"))
    lane_usd = rate("sidecar_cost_usd_total", "lane", over="1h", lane="!idle")
    return [
        lines(
            "Dollars per hour",
            {"{{lane}}": f"3600 * {rate('sidecar_cost_usd_total', 'lane', over='5m')}"},
            "currencyUSD",
            stacked=True,
            shows="Rent by who had the slots.",
            do=f"The grey part is wasted. {RENT}",
        ),
        lines(
            "Dollars per million tokens",
            {
                "{{lane}}": f"1e6 * {per(lane_usd, rate('sidecar_tokens_total', 'lane', over='1h'))}",
                "both, idle time included": f"1e6 * {every}",
            },
            "currencyUSD",
            shows="The rent of each lane's slots divided by its tokens, and all rent divided by all tokens.",
            do="Compare it with the price of a hosted model before you move a job.",
        ),
    ]


def _shares() -> list[Panel]:
    served = grown("sidecar_tenant_tokens_total", "lane, tenant", lane="~$lane", tenant="~$tenant")
    share = f"{served} / on (lane) group_left () ({grown('sidecar_tenant_tokens_total', 'lane')} > 0)"
    usd = f"{share} * on (lane) group_left () {grown('sidecar_cost_usd_total', 'lane')}"
    ended = grown("sidecar_job_ended_items_total", "tenant, job_name")
    all_ended, rent = grown("sidecar_job_ended_items_total"), grown("sidecar_cost_usd_total", lane="offline")
    jobs = f"{ended} / scalar({all_ended} > 0) * scalar({rent})"
    return [
        table(
            "Tenants",
            {"tokens": (served, "short"), "share of the lane": (share, "percentunit"), "dollars": (usd, "currencyUSD")},
            keys=("tenant", "lane"),
            size=(12, 9),
            shows="Tokens of each tenant in the chosen time, and the rent of its lane by its share of the "
            "tokens. The fifty "
            "tenants served most have names.",
            do=f"Idle time is nobody's here. {RENT}",
        ),
        table(
            "Jobs",
            {"items": (ended, "short"), "dollars": (jobs, "currencyUSD")},
            keys=("tenant", "job_name"),
            size=(12, 9),
            shows="Items of each job that ended in the chosen time, and the rent of the offline lane by the "
            "share of items.",
            do="An estimate: items of one job may be longer than those of another. It needs items with the "
            "header x-job.",
        ),
        bars(
            "Tokens today",
            grown("sidecar_tenant_tokens_total", "tenant", over="1d", lane="~$lane", tenant="~$tenant"),
            "{{tenant}}",
            size=(24, 6),
            shows="Tokens of each tenant in the last 24 hours, prompts and outputs.",
            do="A tenant with more than it should have: set its weight, slots_max or waiting_max.",
        ),
    ]
