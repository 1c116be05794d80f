"""`sidecar dlq`: the dead letters, one of them whole, and sent again."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from typing import Any

from sidecar.batch.dead_items import DeadChoice, DeadItem, dead_items, retry
from sidecar.cli.ticker import Ticker
from sidecar.cli.where import Environment, add_where, job_settings, run
from sidecar.core.errors import SettingsError
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry.wording import counted, printable

HELP = """
Look at dead letters, and send them again once what was wrong with them is mended.

  list   a line for each; --count counts them by job and reason
  show   one of them whole, its item byte for byte on stdout
  retry  send them again as items: same key, value and id; `x-retry-of` names where each stood. None is sent twice

SOURCE is topic/partition/offset of the item, as `list` and a result's `id` name it.

examples:
  sidecar dlq list --config sidecar.yaml --count
  sidecar dlq list --config sidecar.yaml --job nightly --reason failed
  sidecar dlq show inference.requests/3/1207 --config sidecar.yaml
  sidecar dlq retry --config sidecar.yaml --job nightly --reason failed --reason expired
"""


def register_dlq(subparsers: Any) -> None:
    """Add `dlq` with its actions."""
    parser = subparsers.add_parser(
        "dlq",
        help="list, show or retry dead letters",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, command in (("list", _list), ("show", _show), ("retry", _retry)):
        each = actions.add_parser(action)
        if action == "show":
            each.add_argument("source", metavar="SOURCE")
        else:
            each.add_argument("--job", help="only this job's")
            each.add_argument("--tenant", help="only this tenant's")
            each.add_argument(
                "--reason", action="append", default=[], help="only these; repeatable (docs/reference.md)"
            )
        if action == "list":
            each.add_argument("--count", action="store_true", help="count them by job and reason")
            each.add_argument("--json", action="store_true", help="as JSON, one object a line")
        if action == "retry":
            each.add_argument("--source", action="append", default=[], help="only these; repeatable")
            each.add_argument("--all", action="store_true", help="whatever job and reason")
        add_where(each)
        each.set_defaults(run=command)


def _choice(options: argparse.Namespace) -> DeadChoice:
    sources = frozenset(getattr(options, "source", ()))
    return DeadChoice(job=options.job, tenant=options.tenant, reasons=frozenset(options.reason), sources=sources)


def _list(options: argparse.Namespace, environment: Environment) -> int:
    return run(_listed(job_settings(options, environment), _choice(options), options))


async def _listed(settings: OfflineSettings, choice: DeadChoice, options: argparse.Namespace) -> int:
    counts: Counter[tuple[str, str]] = Counter()
    async for item in dead_items(settings, choice):
        if options.count:
            counts[item.job[1] if item.job else "", item.reason] += 1
        else:
            print(json.dumps(item.document()) if options.json else _line(item))
    for (job, reason), count in sorted(counts.items()):
        told = {"job": job or None, "reason": reason, "count": count}
        print(json.dumps(told) if options.json else f"{count:>8,}  {reason:<24} {printable(job) or '(no job)'}")
    return 0


def _line(item: DeadItem) -> str:
    again = f" (retry {item.retry})" if item.retry else ""
    return f"{item.source}  {printable(item.custom_id)}  {item.reason}{again}: {printable(item.message)}"


def _show(options: argparse.Namespace, environment: Environment) -> int:
    choice = DeadChoice(sources=frozenset([options.source]))
    found = run(_last(job_settings(options, environment), choice))
    if found is None:
        raise SettingsError(f"no dead letter of an item at {options.source}")
    for name, value in (*found.document().items(), *found.record.headers):
        text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
        print(f"{name}: {text}", file=sys.stderr)
    sys.stdout.flush()
    sys.stdout.buffer.write((found.record.value or b"") + b"\n")
    return 0


async def _last(settings: OfflineSettings, choice: DeadChoice) -> DeadItem | None:
    found = None
    async for item in dead_items(settings, choice):
        found = item
    return found


def _retry(options: argparse.Namespace, environment: Environment) -> int:
    if not (options.all or options.job or options.tenant or options.reason or options.source):
        raise SettingsError("say which dead letters: --job, --tenant, --reason, --source, or --all")
    ticker = Ticker("sent again")
    sent, left_out = run(retry(job_settings(options, environment), _choice(options), ticker.tell))
    ticker.end()
    more = f"; {left_out} were left out: sent again before, or cut" if left_out else ""
    print(f"{counted(sent, 'dead letter')} sent again{more}")
    return 0
