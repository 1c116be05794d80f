"""`sidecar jobs` and `sidecar job`: what was submitted, how far it is, and a hand on it."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sidecar.batch.board import NO_JOBS_TOPIC, JobRow, order, read_board
from sidecar.batch.results import until_it_passes
from sidecar.cli.ticker import Ticker
from sidecar.cli.where import Environment, add_where, job_settings, run
from sidecar.core.errors import SettingsError
from sidecar.offline.dead_letters import DeadItemError
from sidecar.offline.item import deadline_of
from sidecar.offline.job_orders import JobField, JobPriority, JobState
from sidecar.offline.job_progress import JobKey
from sidecar.offline.kafka_errors import LogError
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry.wording import duration, printable

WATCH_S = 1.0
FAILED = 1
HELP = """
Show one job, or order it about. An order stands on the jobs topic, and every sidecar obeys within a second.

  show      counts, tokens, and when it will be over
  cancel    what runs is stopped; each item that has not ended becomes a dead letter `cancelled`; results stay
  pause     none of its items runs; they keep their places, and what a running one had computed is computed again
  resume    run again; of a cancelled job only items that have not become dead letters yet
  priority  high, normal or low among the jobs of its tenant with the same deadline, or none
  deadline  TIME (RFC 3339) in place of the items' own, or `none` to let those hold again

examples:
  sidecar job show nightly --config sidecar.yaml
  sidecar job cancel nightly --config sidecar.yaml --wait
  sidecar job deadline nightly 2030-12-01T06:00:00Z --config sidecar.yaml
"""
_STATES = {"cancel": JobState.CANCELLED, "pause": JobState.PAUSED, "resume": JobState.RUNNING}


def register_jobs(subparsers: Any) -> None:
    """Add `jobs`."""
    parser = subparsers.add_parser("jobs", help="list the jobs: how many items are done, failed, cancelled, left")
    add_where(parser)
    parser.add_argument("--tenant", help="only this one's")
    parser.add_argument("--running", action="store_true", help="leave out those that are over")
    parser.add_argument("--json", action="store_true", help="as JSON, one object a line")
    parser.set_defaults(run=_jobs)


def register_job(subparsers: Any) -> None:
    """Add `job` with its actions."""
    parser = subparsers.add_parser(
        "job",
        help="show, cancel, pause, resume a job, or give it another priority or deadline",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action in ("show", *_STATES, "priority", "deadline"):
        each = actions.add_parser(action)
        each.add_argument("job", metavar="JOB")
        if action == "deadline":
            each.add_argument("deadline", metavar="TIME")
        elif action == "priority":
            each.add_argument("priority", choices=[priority.value for priority in JobPriority])
        add_where(each)
        each.add_argument("--tenant", help="whose job it is, where several tenants have one of this name")
        if action == "show":
            each.add_argument("--json", action="store_true", help="as JSON")
        elif action == "cancel":
            each.add_argument("--wait", action="store_true", help="end when no item of it is left")
        each.set_defaults(run={"show": _show, "deadline": _deadline, "priority": _priority}.get(action, _state))


def _jobs(options: argparse.Namespace, environment: Environment) -> int:
    rows = run(read_board(job_settings(options, environment))).rows.values()
    chosen = [row for row in rows if options.tenant in (None, row.tenant) and not (options.running and row.over)]
    chosen.sort(key=lambda row: ("" if row.manifest is None else row.manifest.created, row.tenant, row.job))
    if options.json:
        for row in chosen:
            print(json.dumps(row.document()))
        return 0
    print("\n".join(table(chosen)) if chosen else "no job")
    return 0


def table(rows: Sequence[JobRow]) -> list[str]:
    """The jobs as lines of text."""
    head = ("job", "tenant", "status", "items", "done", "failed", "cancelled", "tokens", "ends")
    cells = [
        (
            printable(row.job),
            printable(row.tenant),
            row.status,
            "?" if row.items is None else f"{row.items:,}",
            *(f"{count:,}" for count in (row.done, row.failed, row.cancelled, row.prompt_tokens + row.output_tokens)),
            ending(row),
        )
        for row in rows
    ]
    widths = [max(len(line[at]) for line in (head, *cells)) for at in range(len(head))]
    return [_aligned(line, widths) for line in (head, *cells)]


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    numbers = range(3, 8)
    placed = (
        cell.rjust(width) if at in numbers else cell.ljust(width)
        for at, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    return "  ".join(placed).rstrip()


def ending(row: JobRow) -> str:
    """When the job will be over, from now, as last told; "" if that is not known, or it is over."""
    if row.over or row.end_p50_ms is None:
        return ""
    now_ms = time.time() * 1000
    p50, p90 = (max((each or row.end_p50_ms) - now_ms, 0) / 1000 for each in (row.end_p50_ms, row.end_p90_ms))
    return f"in {duration(p50)}" + (f", at most {duration(p90)} in nine cases of ten" if row.end_p90_ms else "")


def _show(options: argparse.Namespace, environment: Environment) -> int:
    row = run(read_board(job_settings(options, environment))).find(options.job, options.tenant)
    if options.json:
        print(json.dumps(row.document(), indent=2))
        return 0
    told = {
        "job": printable(row.job),
        "tenant": printable(row.tenant),
        "status": row.status,
        "items": "not known: it was not sent by `sidecar submit`" if row.items is None else f"{row.items:,}",
        "done": f"{row.done:,}",
        "failed": f"{row.failed:,}",
        "cancelled": f"{row.cancelled:,}",
        "left": "" if row.left is None else f"{row.left:,}",
        "prompt tokens": f"{row.prompt_tokens:,}",
        "output tokens": f"{row.output_tokens:,}",
        "priority": row.priority.value,
        "deadline": row.deadline or "none",
        "ends": ending(row),
        "digest": f"{row.digest:032x}" if row.over else "",
    }
    print("\n".join(f"{name:<14} {text}" for name, text in told.items() if text))
    return 0


def _state(options: argparse.Namespace, environment: Environment) -> int:
    settings = job_settings(options, environment)
    key = run(ordered(settings, options.job, options.tenant, JobField.STATE, _STATES[options.action].value))
    print(f"job {options.job} of tenant {key[0]}: {_STATES[options.action].value}")
    return run(watch_job(settings, key)) if getattr(options, "wait", False) else 0


def _deadline(options: argparse.Namespace, environment: Environment) -> int:
    deadline = None if options.deadline == "none" else options.deadline
    try:
        at = deadline_of(deadline)
    except DeadItemError as error:
        raise SettingsError(str(error).replace("x-deadline", "TIME", 1)) from None
    if at is not None and at <= datetime.now(UTC):
        raise SettingsError(f"TIME {deadline} has passed: each item that is left would expire")
    settings = job_settings(options, environment)
    key = run(ordered(settings, options.job, options.tenant, JobField.DEADLINE, deadline))
    print(f"job {options.job} of tenant {key[0]}: deadline {deadline or 'as its items state it'}")
    return 0


def _priority(options: argparse.Namespace, environment: Environment) -> int:
    settings = job_settings(options, environment)
    key = run(ordered(settings, options.job, options.tenant, JobField.PRIORITY, options.priority))
    print(f"job {options.job} of tenant {key[0]}: priority {options.priority}")
    return 0


async def ordered(settings: OfflineSettings, job: str, tenant: str | None, kind: JobField, value: Any) -> JobKey:
    """The order stands on the jobs topic; whose job it is. Raises SettingsError if there is no such job."""
    row = (await read_board(settings)).find(job, tenant)
    key = row.tenant, row.job
    await order(settings, key, kind, value)
    return key


def require_board(settings: OfflineSettings) -> None:
    """Raises SettingsError unless somebody can tell when a job is over."""
    if not settings.jobs_topic or not settings.progress_topic:
        raise SettingsError(f"{NO_JOBS_TOPIC}; --wait needs a progress_topic too")


async def watch_job(settings: OfflineSettings, job: JobKey) -> int:
    """Tell how far the job is until each item has its outcome; the exit code: 1 if an item failed."""
    require_board(settings)
    ticker: Ticker | None = None
    while True:
        try:
            row = (await read_board(settings)).row(job)
        except LogError as error:
            await until_it_passes(error, follow=True)
            continue
        ticker = ticker or Ticker("ended", row.items)
        ticker.tell(row.done + row.dead, extra=f", {row.failed} failed" if row.failed else "")
        if row.over:
            break
        await asyncio.sleep(WATCH_S)
    ticker.end()
    print(f"job {row.job} is over: {row.done:,} done, {row.failed:,} failed, {row.cancelled:,} cancelled")
    return FAILED if row.failed else 0
