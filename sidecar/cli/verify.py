"""`sidecar verify`: whether a job's outcomes on the topics are those that were written, each once."""

from __future__ import annotations

import argparse
import importlib.util
import json
from typing import Any

from sidecar.batch.board import JobRow, read_board
from sidecar.cli.verifier import Asked, Findings, VerifyError, verify
from sidecar.cli.where import Environment, add_where, job_settings, run
from sidecar.core.errors import SettingsError
from sidecar.offline.kafka_errors import LogError
from sidecar.settings.offline import OfflineSettings

FAULTS_SHOWN_MAX = 50
FAULTY = 1
HELP = """
Read a job's items, results and dead letters again, with another client library (confluent-kafka) and no code of the
sidecar, and hold them against each other and against the receipt: counts and a digest that were written in the
transactions of the outcomes. A result that is missing, doubled or changed is named by its item's partition and offset.

examples:
  sidecar verify --job nightly --config sidecar.yaml
  sidecar verify --job nightly --config sidecar.yaml --json

exit codes:
  0  each item has exactly one outcome, as it was written
  1  something is wrong; it is named
"""


def register_verify(subparsers: Any) -> None:
    """Add `verify`."""
    parser = subparsers.add_parser(
        "verify",
        help="check a job's results against its items and its receipt",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_where(parser)
    parser.add_argument("--job", required=True, metavar="JOB")
    parser.add_argument("--tenant", help="whose job it is, where several tenants have one of this name")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_verify)


def _verify(options: argparse.Namespace, environment: Environment) -> int:
    if importlib.util.find_spec("confluent_kafka") is None:
        raise SettingsError("verify needs confluent-kafka: pip install 'backfill-sidecar[verify]'")
    settings = job_settings(options, environment)
    row = run(read_board(settings)).find(options.job, options.tenant)
    try:
        found = verify(asked(settings, row), over=row.over)
    except VerifyError as error:
        raise LogError(str(error)) from None
    if options.json:
        print(json.dumps(document(found, row)))
    else:
        _tell(found, row)
    return 0 if found.sound else FAULTY


def asked(settings: OfflineSettings, row: JobRow) -> Asked:
    """What the checker has to know."""
    return Asked(
        client=client(settings),
        tenant=row.tenant,
        job=row.job,
        group=settings.group,
        requests=settings.requests_topic,
        results=settings.results_topic,
        dead_letters=settings.dead_letter_topic,
        progress=settings.progress_topic,
        starts={} if row.manifest is None else row.manifest.starts,
    )


def client(settings: OfflineSettings) -> dict[str, Any]:
    """The settings as confluent-kafka names them."""
    security = settings.security
    options: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "security.protocol": security.protocol,
        "ssl.ca.location": security.ca_file,
        "ssl.certificate.location": security.certificate_file,
        "ssl.key.location": security.key_file,
    }
    if security.protocol.startswith("SASL"):
        if security.mechanism == "OAUTHBEARER":
            raise SettingsError("verify does not speak OAUTHBEARER: name another mechanism")
        password = security.password_file.read_text().rstrip("\r\n") if security.password_file else security.password
        options |= {
            "sasl.mechanism": security.mechanism,
            "sasl.username": security.username,
            "sasl.password": password,
        }
    return {name: str(value) for name, value in options.items() if value is not None}


def document(found: Findings, row: JobRow) -> dict[str, Any]:
    """The findings as JSON."""
    faults = [{"source": source, "fault": fault} for source, fault in found.faults]
    counts = {"items": found.items, "results": found.results, "dead": found.dead, "open": found.open}
    return {"job": row.job, "tenant": row.tenant, **counts, "digest": f"{found.digest:032x}", "faults": faults}


def _tell(found: Findings, row: JobRow) -> None:
    for source, fault in found.faults[:FAULTS_SHOWN_MAX]:
        where = "" if source is None else f"partition {source[0]} offset {source[1]}: "
        print(f"FAULT {where}{fault}")
    if len(found.faults) > FAULTS_SHOWN_MAX:
        print(f"and {len(found.faults) - FAULTS_SHOWN_MAX} more")
    left = f", {found.open:,} not over yet" if found.open else ""
    print(f"job {row.job}: {found.items:,} items, {found.results:,} results, {found.dead:,} dead letters{left}")
    print(f"digest {found.digest:032x}: {'as the receipt says' if found.sound else 'see above'}")
