"""The status document as text: for a terminal, and for a browser without scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SLOT_SIGNS = (("slots_online", "O"), ("slots_offline", "o"), ("slots_draining", "d"), ("slots_free", "."))
STRIP_MAX = 64


def status_text(document: Mapping[str, Any]) -> str:
    """A screenful of lines; the signs of the slot strip are explained in its last one."""
    lines = [f"sidecar {document['version']}: {document['state']}, {document['in_flight']} in flight"]
    for name, engine in document["engines"].items():
        lines += _engine(name, engine)
    for lane in document["lanes"]:
        oldest = f", the oldest for {lane['oldest_age_s']:.1f} s" if lane["waiting"] else ""
        lines.append(f"{lane['lane']} lane of {lane['model']}: {lane['waiting']} waiting{oldest}")
    lines += _offline(document.get("offline"))
    lines += [_job(job) for job in document["jobs"] if job["deadline_in_s"] is not None or job["job"]]
    lines.append("slots: O online, o offline, d draining, . free")
    return "\n".join(lines)


def slot_strip(engine: Mapping[str, Any]) -> str:
    """One sign per slot, grouped by use; a share of it where there are more than fit."""
    scale = min(1.0, STRIP_MAX / max(engine["slots"], 1))
    return "".join(sign * round(engine[key] * scale) for key, sign in SLOT_SIGNS)


def _engine(name: str, engine: Mapping[str, Any]) -> Iterator[str]:
    up = "up" if engine["up"] else "DOWN"
    foreign = f", {engine['foreign_slots']} used by others" if engine["foreign_slots"] else ""
    yield f"engine {name} ({engine['model']}) is {up}: [{slot_strip(engine)}] of {engine['slots']} slots{foreign}"
    grants = ", ".join(f"{count} {kind}" for kind, count in engine["grants"].items())
    yield f"  grants: {grants}; what holds offline back now: {engine['limit_binding']}"
    share = engine["worst_window_share"]
    worst = "not known yet" if share is None else f"{100 * share:.1f} %"
    yield (
        f"  contended: {engine['contended']}, offline's {engine['offline_of_contended']};"
        f" turns due {engine['turns_due']}, taken {engine['turns_taken']}, lapsed {engine['turns_lapsed']};"
        f" worst window {worst}"
    )


def _job(job: Mapping[str, Any]) -> str:
    """One job: a time that is not known is a question mark."""
    due, p50, p90 = (
        "?" if job[key] is None else f"{job[key]:.0f} s" for key in ("deadline_in_s", "eta_p50_s", "eta_p90_s")
    )
    name = job["job"] or "items without a job"
    return f"job {name} of {job['tenant']}: {job['items']} here, {job['verdict']}, due in {due}, done in {p50} ({p90})"


def _offline(offline: Mapping[str, Any] | None) -> Iterator[str]:
    if offline is None:
        return
    yield f"items from {offline.get('topic', 'Kafka')}: {offline['state']}"
    ends = [f"{each['count']} {each['outcome']} {each['reason']}".strip() for each in offline["stats"]["items"]]
    yield f"  durable: {', '.join(ends) or 'none yet'}"
    for share in offline["partitions"]:
        lag = max(share["end"] - share["watermark"], 0)
        yield (
            f"  partition {share['partition']}: watermark {share['watermark']}, holes {share['holes']}, lag {lag},"
            f" in flight {share['in_flight']}"
        )
