"""Writes docs/reference.md from the code: every metric, setting, span attribute, header and reason of a dead letter.

What is said of a setting or a reason is the comment beside it in the code. Names of span attributes and headers are
collected from the code, and what they mean stands here: a name without a meaning, or a meaning without a name, is an
error. A test holds the page against the code.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dev.boards.write import BOARDS
from sidecar.cli.metric_rows import metric_rows
from sidecar.core.settings import EngineSettings, SchedulerSettings, TenantSettings
from sidecar.offline.dead_letters import DeadReason
from sidecar.offline.lane_state import Cause
from sidecar.settings.aliases import Rule
from sidecar.settings.file import EngineEndpoint, ServeSettings, TracingSettings
from sidecar.settings.keys import KeySettings, KeysSettings
from sidecar.settings.limits import LimitSettings
from sidecar.settings.offline import KafkaSecuritySettings, OfflineSettings
from sidecar.settings.openai import OpenAiSettings
from sidecar.settings.recorder import RecorderSettings
from sidecar.settings.tls import ClientTlsSettings, ServerTlsSettings, TlsSettings

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference.md"
SETTINGS: dict[str, type[Any]] = {
    "at the top": ServeSettings,
    "engines[]": EngineEndpoint,
    "scheduler": SchedulerSettings,
    "scheduler.tenants.NAME": TenantSettings,
    "offline": OfflineSettings,
    "offline.security": KafkaSecuritySettings,
    "aliases.NAME[]": Rule,
    "limits": LimitSettings,
    "keys": KeysSettings,
    "keys.file, each line": KeySettings,
    "tls": TlsSettings,
    "tls.listen, tls.http": ServerTlsSettings,
    "tls.engines, tls.tracing": ClientTlsSettings,
    "tracing": TracingSettings,
    "openai": OpenAiSettings,
    "recorder": RecorderSettings,
}
_ATTRIBUTE = re.compile(r"(?:gen_ai|rpc|messaging|kafka|sidecar|server|error)(?:\.[a-z_]+)+")
_HEADER = re.compile(r"x-[a-z]+(?:-[a-z]+)*|dlq(?:\.[a-z_]+)+|traceparent|tracestate|retry-after")
_NO_ATTRIBUTE = {"sidecar.data", "sidecar.example.yaml", "sidecar.yaml"}
ATTRIBUTES = {
    "error.type": "status or reason, where the span ended in an error",
    "gen_ai.first_token": "event: the first token reached the sidecar",
    "gen_ai.operation.name": "`text_completion`",
    "gen_ai.provider.name": "`triton`",
    "gen_ai.request.max_tokens": "the bound of the output, in tokens",
    "gen_ai.request.model": "the engine's model",
    "gen_ai.response.finish_reasons": "why this dispatch ended",
    "gen_ai.response.time_to_first_chunk": "seconds from the dispatch to its first token",
    "gen_ai.usage.cache_read.input_tokens": "prompt tokens that the engine still had in its KV cache, if it says so",
    "gen_ai.usage.input_tokens": "prompt tokens of the request",
    "gen_ai.usage.output_tokens": "tokens of the answer, over all its dispatches",
    "messaging.batch.message_count": "records of a poll, or items of a commit",
    "messaging.client.id": "the sidecar's client id at the broker",
    "messaging.consumer.group.name": "the group whose offsets are committed",
    "messaging.destination.name": "the topic",
    "messaging.destination.partition.id": "the partition",
    "kafka.cluster.id": "the broker's cluster",
    "kafka.message.key": "the item's key",
    "kafka.offset": "the item's offset",
    "messaging.operation.name": "`poll`, `process`, `send` or `commit`",
    "messaging.operation.type": "`receive`, `process`, `send` or `settle`",
    "messaging.system.name": "`kafka`",
    "rpc.method": "the RPC, with its service",
    "rpc.status_code": "the gRPC status that the caller got",
    "rpc.system.name": "`grpc`",
    "server.address": "where the sidecar listens for callers",
    "server.port": "the port there",
    "sidecar.alone_ms": "what the request would have taken without offline work, in ms, by the attribution",
    "sidecar.attempt": "1 for the first dispatch of a request",
    "sidecar.dispatch.kind": "why the dispatch was allowed: online, reserved, backfill …",
    "sidecar.engine": "the engine's name in the settings",
    "sidecar.lane": "`online`, `offline`, or both",
    "sidecar.limit_binding": "what held offline back when the request began to wait",
    "sidecar.queue.depth": "requests of its lane that waited then, itself included",
    "sidecar.sampled_late": "true: kept because it was slow or went wrong, although it was not sampled",
    "sidecar.slowdown": "what the request took ÷ what it would have taken without offline work",
}
HEADERS = {
    "dlq.attempts": ("dead letter", "dispatches that were tried"),
    "dlq.error.class": ("dead letter", "the reason, one of those below"),
    "dlq.error.message": ("dead letter", "one sentence that names the field or the limit"),
    "dlq.error.openai": ("dead letter", "the error object as the OpenAI API writes it"),
    "dlq.error.stage": ("dead letter", "`parse`, `run` or `publish`"),
    "dlq.first_seen": ("dead letter", "when this group first read the item, in ms since 1970"),
    "dlq.original.group": ("dead letter", "the group that read the item"),
    "dlq.original.offset": ("dead letter", "where the item came from"),
    "dlq.original.partition": ("dead letter", "where the item came from"),
    "dlq.original.timestamp": ("dead letter", "the item's own, in ms since 1970"),
    "dlq.original.topic": ("dead letter", "where the item came from"),
    "dlq.truncated": ("dead letter", "bytes of the item's value, where it was too long to be kept"),
    "traceparent": ("item, metadata", "W3C trace context: an item's span is linked to it, a caller's hangs from it"),
    "tracestate": ("item", "passed on"),
    "x-deadline": ("item", "RFC 3339; decides about the order, and gets the job a verdict"),
    "x-job": ("item", "the job that the item belongs to"),
    "x-lane": ("metadata", "`offline`: the request runs in the offline lane"),
    "x-line": ("item", "where the item stood in its file: results come back in that order"),
    "x-result-hash": ("result", "BLAKE2b-128 of the value, in hex"),
    "x-retry-of": ("item", "where the item stood whose dead letter this is: topic/partition/offset"),
    "x-retry": ("item", "1 for the first retry of a dead letter, and so on; the outcome of the last one counts"),
    "x-model": ("item", "a model or an alias of the settings; before the item's own `model`"),
    "x-source-group": ("result", "the group that read the item"),
    "x-source-offset": ("result", "where the item came from"),
    "x-source-partition": ("result", "where the item came from"),
    "x-source-topic": ("result", "where the item came from"),
    "x-tenant": ("item, metadata", "whose request it is: a share of its lane, and limits"),
}


def comments(of: type[Any]) -> dict[str, str]:
    """Return what the code says beside each member of a class: the comment on its lines, or those just above."""
    lines = inspect.getsource(of).splitlines()
    remarks = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(inspect.cleandoc("\n".join(lines)) + "\n").readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    tree = ast.parse("\n".join(lines)).body[0]
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign | ast.Assign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            beside = [remarks[line][0] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in remarks]
            above, line = list[str](), node.lineno - 1
            while line in remarks and remarks[line][1]:
                above.insert(0, remarks[line][0])
                line -= 1
            found[ast.unparse(target)] = " ".join(above + beside)
    return found


def settings() -> Iterator[str]:
    """Yield one table per section of the settings file."""
    for section, kind in SETTINGS.items():
        said = (comments(EngineSettings) if issubclass(kind, EngineSettings) else {}) | comments(kind)
        yield f"\n### {section}\n"
        rows = [(f"`{each.name}`", default(each), said[each.name]) for each in fields(kind) if not nested(each)]
        yield from table(("key", "default", "meaning"), rows)


def nested(each: Field[Any]) -> bool:
    """True if the field is a section of its own."""
    made = each.default_factory is not MISSING and is_dataclass(each.default_factory)
    return made or each.name in ("engines", "aliases", "tenants", "offline", "recorder")


def default(each: Field[Any]) -> str:
    """Return the default of a field as YAML would have it, or that there is none."""
    if each.default_factory is not MISSING:
        value = each.default_factory()
    elif each.default is MISSING:
        return "–"
    else:
        value = each.default
    if value is None or value == "" or (isinstance(value, tuple | dict) and not value):
        return "none"
    text = str(value).lower() if isinstance(value, bool) else f"{value:_}" if isinstance(value, int) else str(value)
    return f"`{text}`"


def used(pattern: re.Pattern[str]) -> set[str]:
    """Return the texts in the product's code that are names of this form."""
    return {text for text in texts() if pattern.fullmatch(text)}


@cache
def texts() -> frozenset[str]:
    """Return every text in the product's code."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "sidecar").rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return frozenset(node.value for node in nodes if isinstance(node.value, str))


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a table; a bar in a cell is escaped."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def page() -> str:
    """Return the whole page. Raises ValueError for a name whose meaning is not told, or that nobody uses."""
    for what, found, told in (
        ("span attributes", used(_ATTRIBUTE) - _NO_ATTRIBUTE, set(ATTRIBUTES)),
        ("headers", used(_HEADER), set(HEADERS)),
    ):
        if found != told:
            raise ValueError(f"{what}: without a meaning: {sorted(found - told)}; used nowhere: {sorted(told - found)}")
    lines = ["# Reference", "", "Made from the code by `scripts/reference`; a test holds the two together.", ""]
    lines += ["[Settings](#settings) · [Metrics](#metrics) · [Headers](#headers) · [Dead letters](#dead-letters) ·"]
    lines += [
        "[Why the lane waits](#why-the-offline-lane-waits) · [Spans](#spans); the status codes of callers' errors"
    ]
    lines += ["are in [wire.md](wire.md), those of commands in [cli.md](cli.md).", "", "## Settings", ""]
    lines += ["One YAML file; each key can be overridden from the environment by its path, as"]
    lines += ["`SIDECAR__ENGINES__0__TARGET=triton:8001`. An unknown key is an error.", *settings()]
    lines += ["", "## Metrics", "", "On `/metrics` of the `http` address. A counter ends in `_total` there. The last"]
    lines += ["column says where each is drawn or watched: on a [board](dashboards.md), or by a rule or an alert.", ""]
    rows = [
        (f"`{each.name}`", each.kind, ", ".join(each.labels), each.help, ", ".join(seen_on(each.name)) or "–")
        for each in metric_rows()
    ]
    lines += table(("name", "kind", "labels", "meaning", "seen on"), rows)
    lines += ["", "## Headers", "", "Of Kafka records, and metadata of gRPC calls.", ""]
    lines += table(("name", "on", "meaning"), [(f"`{name}`", *HEADERS[name]) for name in sorted(HEADERS)])
    lines += ["", "## Dead letters", "", "The reasons in `dlq.error.class` and in the label of the metric.", ""]
    lines += enumeration(DeadReason)
    lines += ["", "## Why the offline lane waits", "", "The causes in `/readyz`, `/status.json` and the log.", ""]
    lines += enumeration(Cause)
    lines += [
        "",
        "## Spans",
        "",
        "`wait_for_slot`, `text_completion MODEL` and the caller's RPC for a request; `poll`,",
    ]
    lines += ["`process`, `send` and `commit` with their topic for items. Their attributes:", ""]
    lines += table(("attribute", "meaning"), [(f"`{name}`", ATTRIBUTES[name]) for name in sorted(ATTRIBUTES)])
    return "\n".join(lines) + "\n"


def seen_on(metric: str) -> list[str]:
    """Return the boards that ask for a metric, and `rules` if a rule or an alert does."""
    texts = {name: json.dumps(make()["panels"]) for name, make in BOARDS.items()}
    texts["rules"] = "".join((ROOT / "deploy/prometheus" / name).read_text() for name in ("rules.yml", "alerts.yml"))
    sample = re.compile(rf"(?<![\w:]){metric}(?:_total|_bucket|_sum|_count)?(?![\w:])")
    return [name for name, text in texts.items() if sample.search(text)]


def enumeration(kind: type[Any]) -> Iterator[str]:
    """Yield the table of an enumeration of texts."""
    said = comments(kind)
    return table(("value", "meaning"), [(f"`{each.value}`", said[each.name]) for each in kind if each.value])


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or say with --check whether it is the present one."""
    parser = argparse.ArgumentParser(prog="scripts/reference", description="Write docs/reference.md from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not the code's")
    text = page()
    if parser.parse_args(arguments).check:
        current = PAGE.exists() and PAGE.read_text() == text
        print("docs/reference.md " + ("is the present one" if current else "is not the code's: run scripts/reference"))
        return 0 if current else 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
