"""Kafka and exactly-once: where each partition stands, and what became of every item."""

from __future__ import annotations

from typing import Any

from dev.boards.board import board
from dev.boards.panel import Panel, high_is_bad, lines, stat, states
from dev.boards.query import grown, highest, of, percentile, rate, together, total

PROCESS = "messaging_process_duration_seconds"


def kafka() -> dict[str, Any]:
    """Return the board."""
    rows = {"Verdict": _verdict(), "Partitions": _partitions(), "Items": _items()}
    text = "Every offset below the watermark has exactly one result or dead letter; this board shows how far that is."
    return board("kafka", "Kafka and exactly-once", text, rows)


def _verdict() -> list[Panel]:
    states_now = total("sidecar_offline_state", "state, reason")
    running = f'label_join({states_now}, "is", ": ", "state", "reason")'
    dead = grown("sidecar_offline_items_total", outcome="~dlq|expired")
    return [
        stat(
            "The lane is",
            running,
            legend="{{is}}",
            names={"running: none": "running", "starting: assignment": "waiting for partitions"},
            size=(6, 4),
            shows="What the offline lane does, and why.",
            do="docs/kafka.md has each reason and its remedy. It looks again by itself; nothing needs a restart.",
        ),
        stat(
            "Items left",
            f"{total('sidecar_kafka_lag')} or vector(0)",
            size=(4, 4),
            shows="From the watermarks to the ends of the partitions. This is the true lag: gaps are in it.",
            do="Kafka's own tools show the same number for the group.",
        ),
        stat(
            "Oldest item",
            highest("sidecar_kafka_oldest_age_seconds"),
            "s",
            size=(5, 4),
            shows="Age of the oldest item whose result is not committed.",
            do="Old while the lane runs: it waits behind others of its tenant, or its partition is stuck (below).",
        ),
        stat(
            "Dead letters",
            dead,
            decimals=0,
            steps=high_is_bad(1, 100),
            size=(4, 4),
            shows="Items that ended as dead letters in the chosen time.",
            do="See the reasons below. Their headers say more.",
        ),
        stat(
            "Fenced",
            grown("sidecar_offline_partition_events_total", event="fenced"),
            decimals=0,
            steps=high_is_bad(1, 5),
            size=(5, 4),
            shows="Times that another owner opened a partition of ours, in the chosen time.",
            do="Once at a rebalance is the protocol at work. Again and again: two processes share an instance_id.",
        ),
    ]


def _partitions() -> list[Panel]:
    return [
        states(
            "State of each partition",
            "{} == 1".format(of("sidecar_offline_partition_state")),
            "{{partition}} {{state}} {{reason}}",
            shows="What each partition does, over time.",
            do="Anything but running for minutes: the reason is in docs/kafka.md, and in /readyz.",
        ),
        lines(
            "Lag",
            {"{{topic}} {{partition}}": total("sidecar_kafka_lag", "topic, partition")},
            stacked=True,
            shows="Items between the watermark and the end, by partition.",
            do="One partition that does not fall while the others do is stuck: see its state.",
        ),
        lines(
            "Watermark",
            {"{{partition}}": "deriv({}[5m])".format(of("sidecar_kafka_watermark_offset"))},
            "ops",
            shows="How fast each watermark moves, in items per second. All below it is committed for good.",
            do="A watermark that stands still above running items waits for its oldest item: see the gaps.",
        ),
        lines(
            "Gaps",
            {"{{partition}}": total("sidecar_kafka_gaps", "partition")},
            shows="Items that are not done although later ones are: results may be committed in any order.",
            do="Some are normal. Thousands: one item is much slower than the others, or is tried again and again.",
        ),
        lines(
            "Commits",
            {"{{event}}": rate("sidecar_offline_partition_events_total", "event", event="committed")},
            "ops",
            shows="Transactions that were committed, results and offsets together.",
            do="None while items end: the broker refuses transactions, see the lane's state.",
        ),
        lines(
            "Fenced, reopened, rebalanced",
            {
                "{{event}}": grown(
                    "sidecar_offline_partition_events_total", "event", over="$__rate_interval", event="!committed"
                )
            },
            shows="Partitions that another owner took, that were opened anew after a failed commit, and rebalances.",
            do="A burst at a deployment is normal. A steady trickle: look for a broker that restarts, or a "
            "shared instance_id.",
        ),
    ]


def _items() -> list[Panel]:
    return [
        lines(
            "Dead letters by reason",
            {
                "{{reason}}": grown(
                    "sidecar_offline_items_total", "reason", over="$__rate_interval", outcome="~dlq|expired"
                )
            },
            stacked=True,
            shows="Items that were given up, by reason.",
            do="docs/reference.md has each reason. Reasons before 'expired' are the producer's to mend.",
        ),
        lines(
            "Items by end",
            {"{{outcome}}": rate("sidecar_offline_items_total", "outcome")}
            | {"taken in": rate("messaging_client_consumed_messages_total")},
            "ops",
            shows="Items taken in, and what became of them.",
            do="Retries are attempts that an engine failed. In the long run as many end as are taken in.",
        ),
        lines(
            "Time of an item",
            {f"p{share}": percentile(share / 100, PROCESS) for share in (50, 95, 99)},
            "s",
            shows="From the consumption of an item until its result is committed.",
            do="It holds the wait for a slot: items wait so that online requests need not.",
        ),
        lines(
            "In flight",
            {"items": total("sidecar_offline_in_flight")},
            shows="Items that were taken in and are not committed.",
            do="Bounded by offline.pending_max per partition. 0 while items are left: the lane is held, see its state.",
        ),
        lines(
            "Memory of items",
            {"{{partition}}": total("sidecar_offline_held_bytes", "partition")},
            "bytes",
            stacked=True,
            shows="Memory of items and results that are not committed.",
            do="Bounded by the settings. It grows while the broker does not take results.",
        ),
        lines(
            "Age of the oldest",
            {"{{partition}}": together("max", of("sidecar_kafka_oldest_age_seconds"), "partition")},
            "s",
            shows="Age of the oldest item whose result is not committed, by partition.",
            do="It falls to 0 where nothing is left.",
        ),
    ]
