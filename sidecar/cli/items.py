"""`sidecar submit` and `sidecar offsets`: items onto the requests topic, and what the group has committed of them."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sidecar.batch.submission import Submission, submit_job
from sidecar.batch.tables import FORMATS, columns_of, table_of
from sidecar.cli.jobs import require_board, watch_job
from sidecar.cli.offsets import PartitionPlace, reset, show
from sidecar.cli.ticker import LOOK_S, Ticker, Ticking
from sidecar.cli.where import Answer, Environment, add_where, next_where, offline_settings, run
from sidecar.core.errors import SettingsError
from sidecar.offline.dead_letters import DeadItemError
from sidecar.offline.item import NAME_RULE, TENANT_DEFAULT, ItemRules, deadline_of, is_name
from sidecar.offline.item_fields import INT32_MAX
from sidecar.offline.item_file import Checked, ItemFileError, check, names_of, opened
from sidecar.offline.kafka_errors import LogError
from sidecar.offline.offsets import Committed
from sidecar.offline.submit import INTERRUPTED, Sent, SubmitError, send_file, told
from sidecar.settings.file import ServeSettings
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry.wording import counted, verb
from sidecar.triton.tokenizer import Tokens

HEADERS = ("tenant", "job", "deadline", "model")
JOB_OF_DIGEST = "file-{}"
INTERRUPTED_CODE = 130  # as the shell has it: 128 + SIGINT


HELP = """
Every line is read as the lane will read it (kafka/item.schema.json, docs/kafka.md), before the first one is sent.
If one is at fault, it is said where and what to do, and nothing is sent. FILE is JSONL, CSV, TSV or Parquet, plain or
gzip, bzip2, xz or zstd; - is standard input. With a jobs_topic in the settings the same file twice is one job, and a
call that broke off goes on when it is repeated.

examples:
  sidecar submit batch.jsonl --config sidecar.yaml --job nightly --deadline 2030-12-01T06:00:00Z
  sidecar submit batch.jsonl --config sidecar.yaml --model tensorrt_llm   # whatever model the lines name
  sidecar submit batch.jsonl --config sidecar.yaml --check                # send nothing
  sidecar submit reviews.csv --config sidecar.yaml --map id=review --map prompt=text --wait
  jq -c . prompts.json | sidecar submit - --bootstrap-servers kafka:9092

exit codes:
  0    every item is acknowledged (with --check: every line is an item)
  1    Kafka failed; what was acknowledged is said, and how to go on
  2    the file or an argument is at fault; nothing was sent
  130  interrupted; what was acknowledged is said, and how to go on
"""


def register_submit(subparsers: Any) -> None:
    """Add `submit`."""
    parser = subparsers.add_parser(
        "submit",
        help="send the lines of a JSONL file as offline items",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="one item per line")
    add_where(parser)
    parser.add_argument("--topic", help="instead of the settings' requests_topic")
    parser.add_argument("--tenant", help="whose items these are; fair shares are per tenant")
    parser.add_argument(
        "--job", help="a name to find their results by; by default one made from the items, so that a file is one job"
    )
    parser.add_argument("--deadline", metavar="TIME", help="RFC 3339, e.g. 2030-12-01T06:00:00Z")
    parser.add_argument("--model", help="the model or alias for all of them, whatever model the lines name")
    parser.add_argument("--check", action="store_true", help="only read the file; needs no Kafka")
    parser.add_argument(
        "--from", dest="first_line", type=int, default=1, metavar="LINE", help="send from this line on (all is checked)"
    )
    parser.add_argument("--allow-duplicates", action="store_true", help="take an id that is there twice")
    parser.add_argument("--format", choices=FORMATS, help="of the file; by default as its name or its beginning says")
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="FIELD=COLUMN",
        help="the column of a table that holds this field of an item, as prompt=text; repeatable",
    )
    parser.add_argument("--wait", action="store_true", help="end when each item has its outcome; needs a jobs_topic")
    parser.set_defaults(run=_submit)


def register_offsets(subparsers: Any) -> None:
    """Add `offsets` with its three actions."""
    parser = subparsers.add_parser("offsets", help="show, decode or reset what the group has committed")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = actions.add_parser("show", help="watermark, gaps and lag of each partition")
    add_where(shown)
    shown.add_argument("--json", action="store_true", help="as JSON, with every gap")
    shown.set_defaults(run=_show)
    decoded = actions.add_parser("decode", help="read the metadata of one committed offset")
    decoded.add_argument("offset", type=int)
    decoded.add_argument("metadata")
    decoded.set_defaults(run=_decode)
    again = actions.add_parser("reset", help="begin elsewhere; what is done above will be done again")
    add_where(again)
    again.add_argument("--to", required=True, metavar="OFFSET", help="earliest, latest or a number")
    again.add_argument(
        "--partition", type=int, action="append", default=[], metavar="N", help="only this one; repeatable"
    )
    again.set_defaults(run=_reset)


def _submit(options: argparse.Namespace, environment: Environment) -> int:
    sent = Sent()
    try:
        return _submitted(options, environment, sent)
    except KeyboardInterrupt:
        print(f"sidecar: interrupted; {told(sent, options.first_line)}", file=sys.stderr)
        return INTERRUPTED_CODE


def _submitted(options: argparse.Namespace, environment: Environment, sent: Sent) -> int:
    settings, whole = offline_settings(options, environment)
    if options.topic is not None:
        settings = replace(settings, requests_topic=options.topic)
    stated = _stated_headers(options)
    rules, tokens = _rules(settings, whole, options.model)
    columns = columns_of(options.map)
    if options.wait:
        require_board(settings)
    with opened(options.file, settings.item_bytes_max) as raw:
        ticker = Ticker("checked")
        file = Ticking(table_of(raw, options.format, columns), ticker)
        headers = names_of({"x-job": JOB_OF_DIGEST.format("0" * 16)} | stated)  # as long as the real one
        checked = check(
            file,
            rules,
            tokens,
            headers,
            record_bytes_max=settings.message_bytes_max,
            allow_duplicates=options.allow_duplicates,
        )
        ticker.end()
        _refuse_faults(file.name, checked, options, rules)
        if tokens is None:
            print("sidecar: lengths are not checked without --config and its tokenizer", file=sys.stderr)
        if options.check:
            print(f"{counted(checked.items, 'item')} {verb(checked.items)} valid; nothing was sent")
            return 0
        job = {"x-job": JOB_OF_DIGEST.format(checked.digest)} | stated
        file.ticker = None
        managed = bool(settings.jobs_topic) and options.first_line == 1
        if managed:
            sending: Coroutine[Any, Any, object] = submit_job(settings, file, checked, job, sent)
        else:
            first = options.first_line
            sending = send_file(settings, file, checked.digest, names_of(job), first_line=first, sent=sent)
        try:
            submission = run(_ticked(sending, sent, checked.items))
        except LogError as error:
            raise SubmitError(f"{error}; {_told(sent, options, managed)}") from None
    if sent.error:
        print(f"sidecar: {sent.error}; {_told(sent, options, managed)}", file=sys.stderr)
        return INTERRUPTED_CODE if sent.error == INTERRUPTED else 1
    return _sent(options, settings, sent, job, submission)


def _told(sent: Sent, options: argparse.Namespace, managed: bool) -> str:
    """What was sent, and how to go on."""
    if managed:
        there = f"{counted(sent.acknowledged, 'item')} {verb(sent.acknowledged)} acknowledged"
        return f"{there}; the same command goes on where it ended"
    return told(sent, options.first_line)


def _sent(
    options: argparse.Namespace, settings: OfflineSettings, sent: Sent, job: dict[str, str], submission: object
) -> int:
    """Say what was sent and what to do next; wait for the job's end if that is asked for."""
    name = job["x-job"]
    if isinstance(submission, Submission) and submission.again:
        print(f"job {name} has these {counted(submission.before, 'item')} already; nothing was sent")
    else:
        before = submission.before if isinstance(submission, Submission) else 0
        more = f", {before} were there before" if before else ""
        print(f"{counted(sent.acknowledged, 'item')} sent to {settings.requests_topic} as job {name}{more}")
    where = next_where(options) + (f" --tenant {shlex.quote(options.tenant)}" if options.tenant else "")
    file = shlex.quote(name.replace("/", "_") + ".results.jsonl")
    print(f"next: sidecar results --job {shlex.quote(name)} -o {file} --follow{where}")
    return run(watch_job(settings, (job.get("x-tenant", TENANT_DEFAULT), name))) if options.wait else 0


async def _ticked(sending: Coroutine[Any, Any, Answer], sent: Sent, items: int) -> Answer:
    """The sending, while a line on stderr says how far it is."""
    ticker = Ticker("sent", items)
    task = asyncio.create_task(sending, name="sending")
    try:
        while not task.done():
            await asyncio.wait([task], timeout=LOOK_S)
            ticker.tell(sent.acknowledged)
    except asyncio.CancelledError:
        task.cancel()
        raise
    finally:
        ticker.end()
    return await task


def _stated_headers(options: argparse.Namespace) -> dict[str, str]:
    """The headers that the arguments state. Raises SettingsError for what the lane would refuse."""
    for name in ("tenant", "job", "model"):
        text = getattr(options, name)
        # ASCII, because callers state the same names as gRPC metadata, which take nothing else.
        if text is not None and not (is_name(text) and text.isascii()):
            raise SettingsError(f"--{name} must be {NAME_RULE} of ASCII")
    if options.deadline is not None:
        try:
            deadline = deadline_of(options.deadline)
        except DeadItemError as error:
            raise SettingsError(str(error).replace("x-deadline", "--deadline", 1)) from None
        if deadline is not None and deadline <= datetime.now(UTC):
            raise SettingsError(f"--deadline {options.deadline} has passed: every item would be a dead letter")
    return {f"x-{name}": value for name in HEADERS if (value := getattr(options, name)) is not None}


def _rules(
    settings: OfflineSettings, whole: ServeSettings | None, model: str | None
) -> tuple[ItemRules, Tokens | None]:
    """What the lane will hold the items against. Without the settings file only the names of models are held."""
    if whole is None:
        return ItemRules.of(settings, dict.fromkeys(filter(None, (settings.model_default, model)), INT32_MAX)), None
    rules = ItemRules.of(settings, {each.model: each.tokens_max for each in whole.engines}, whole.aliases)
    if model is not None and model not in rules.models:
        raise SettingsError(f"--model {model}: no engine serves it; known: {', '.join(rules.models)}")
    return rules, Tokens.load(whole.tokenizer, whole.end_ids) if whole.tokenizer else None


def _refuse_faults(name: str, checked: Checked, options: argparse.Namespace, rules: ItemRules) -> None:
    """Raises SettingsError, one line per fault, unless the whole file may be sent."""
    told_faults = list(checked.faults)
    if checked.faulty > len(told_faults):
        told_faults.append(f"and {checked.faulty - len(told_faults)} more")
    if checked.faulty:
        told_faults.append(
            f"{checked.faulty} of {counted(checked.items, 'line')} {verb(checked.faulty)} at fault; nothing was sent"
        )
    elif not checked.items:
        told_faults.append(f"{name} holds no item; nothing was sent")
    elif not 1 <= options.first_line <= checked.last_line:
        told_faults.append(f"--from must be in 1..{checked.last_line}, not {options.first_line}; nothing was sent")
    if checked.no_json:
        told_faults.append("each line has to be one whole JSON object: jq -c . FILE writes JSON of any layout so")
    if checked.unknown_models:
        known = " or ".join(rules.models)
        hint = "" if options.config else ", or --config FILE, whose engines and aliases are then known"
        told_faults.append(f"a model is unknown: give --model NAME ({known}) to override what the lines name{hint}")
    if told_faults:
        raise ItemFileError("\n".join(told_faults))


def _show(options: argparse.Namespace, environment: Environment) -> int:
    places = run(show(offline_settings(options, environment)[0]))
    if options.json:
        print(json.dumps([_document(each) for each in places], indent=2))
        return 0
    print(f"{'partition':>9} {'watermark':>12} {'gaps':>6} {'done above':>10} {'end':>12} {'lag':>8}")
    for each in places:
        watermark = each.begin if each.offset is None else each.offset
        shown = "none" if each.offset is None else watermark
        gaps = 0 if each.committed is None else len(each.committed.gaps)
        lag = max(each.end - watermark, 0)
        print(f"{each.partition:>9} {shown:>12} {gaps:>6} {each.done_above:>10} {each.end:>12} {lag:>8}")
    for each in places:
        if each.problem:
            print(f"partition {each.partition}: {each.problem}")
    return 0


def _decode(options: argparse.Namespace, environment: Environment) -> int:
    del environment
    if options.offset < 0:
        raise SettingsError(f"an offset must be >= 0, not {options.offset}")
    print(json.dumps(_committed(Committed.decode(options.offset, options.metadata)), indent=2))
    return 0


def _reset(options: argparse.Namespace, environment: Environment) -> int:
    if options.to not in ("earliest", "latest") and not (options.to.isascii() and options.to.isdecimal()):
        raise SettingsError(f"--to must be earliest, latest or an offset, not {options.to!r}")
    for partition, offset in run(
        reset(offline_settings(options, environment)[0], options.to, options.partition)
    ).items():
        print(f"partition {partition} begins at {offset}")
    return 0


def _document(place: PartitionPlace) -> dict[str, Any]:
    committed = None if place.committed is None else _committed(place.committed)
    return {
        "partition": place.partition,
        "begin": place.begin,
        "end": place.end,
        "committed": committed,
        "problem": place.problem or None,
    }


def _committed(committed: Committed) -> dict[str, Any]:
    return {name: getattr(committed, name) for name in ("watermark", "high", "gaps", "restarts", "suspect")}
