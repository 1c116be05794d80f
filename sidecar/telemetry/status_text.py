"""The status document as text: for a terminal, and for a browser without scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.telemetry.wording import outlook, printable

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
    lines += [
        _job(job) for job in document["jobs"] if job["deadline_in_s"] is not None or job["job"] or not job["tenant"]
    ]
    lines += _recorder(document.get("recorder"))
    lines.append("slots: O online, o offline, d draining, . free")
    return "\n".join(lines)


def slot_strip(engine: Mapping[str, Any]) -> str:
    """One sign per slot, grouped by use; a share of it where there are more than fit."""
    scale = min(1.0, STRIP_MAX / max(engine["slots"], 1))
    return "".join(sign * round(engine[key] * scale) for key, sign in SLOT_SIGNS)


def _engine(name: str, engine: Mapping[str, Any]) -> Iterator[str]:
    up = "up" if engine["up"] else "DOWN"
    others = engine["foreign_slots"]
    foreign = ", others' load not known" if others is None else f", {others} used by others" if others else ""
    yield f"engine {name} ({engine['model']}) is {up}: [{slot_strip(engine)}] of {engine['slots']} slots{foreign}"
    for fault in engine.get("faults", ()):
        yield f"  {fault}"
    dispatches = ", ".join(f"{count} {kind}" for kind, count in engine["dispatches"].items())
    yield f"  dispatches: {dispatches}; what holds offline back now: {engine['limit_binding']}"
    share = engine["worst_window_share"]
    worst = "not known yet" if share is None else f"{100 * share:.1f} %"
    yield (
        f"  contended: {engine['contended']}, offline's {engine['offline_of_contended']};"
        f" reserved dispatches due {engine['reserved_due']}, taken {engine['reserved_taken']},"
        f" lapsed {engine['reserved_lapsed']};"
        f" worst window {worst}"
    )
    price = engine["attribution"]
    first, gap, alone = price["ttft_share"], price["itl_share"], price["alone_ms"]
    together = f"; whole answers {price['added_ms'] / alone:.1%} longer" if alone else ""
    yield f"  offline makes first tokens {first:.1%} later, and gaps between tokens {gap:.1%} longer{together}"


def _job(job: Mapping[str, Any]) -> str:
    """One job: how much of it is done, when it is due, and when it will be done. What is not known is said."""
    if not job["job"] and not job["tenant"]:
        return f"further jobs, too many to tell apart: {job['items']} items here; nothing is forecast for them"
    name = f"job {printable(job['job'])}" if job["job"] else "items without a job"
    parts = [f"{job['items']} here"]
    if job.get("done") is not None:
        parts.insert(0, f"{job['done']} done and {job['failed']} failed since the start")
    told = outlook(job["eta_p50_s"], job["eta_p90_s"], job["deadline_in_s"], job["verdict"])
    return f"{name} of {printable(job['tenant'])}: {', '.join(parts)}; {told}"


def _offline(offline: Mapping[str, Any] | None) -> Iterator[str]:
    if offline is None:
        return
    yield f"items from {offline.get('topic', 'Kafka')}: {offline['state']}"
    if "stats" not in offline:  # the lane has not begun
        return
    ends = [f"{each['count']} {each['outcome']} {each['reason']}".strip() for each in offline["stats"]["items"]]
    yield f"  committed: {', '.join(ends) or 'none yet'}"
    for partition in offline["partitions"]:
        yield (
            f"  partition {partition['partition']}: watermark {_known(partition['watermark'])},"
            f" gaps {_known(partition['gaps'])}, lag {_lag(partition)}, in flight {partition['in_flight']}"
            f"{_state(partition)}"
        )


def _lag(partition: Mapping[str, Any]) -> str:
    if partition["end"] is None or partition["watermark"] is None:
        return "not known"
    return str(max(partition["end"] - partition["watermark"], 0))


def _known(value: Any) -> str:
    return "not known" if value is None else str(value)


def _state(partition: Mapping[str, Any]) -> str:
    """Nothing where a partition runs, or where it is not told."""
    state = str(partition.get("state", "running"))
    return "" if state == "running" else f"; {state}"


def _recorder(recorder: Mapping[str, Any] | None) -> Iterator[str]:
    if recorder is not None:
        dropped = f", {recorder['dropped']} decisions are in no file" if recorder["dropped"] else ""
        yield f"recorder: {recorder['state']}{dropped}"
