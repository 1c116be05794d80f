"""What was submitted as a job: its manifest, one record of the jobs topic."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from sidecar.batch.topic_reader import Places
from sidecar.offline.job_progress import JobKey

MANIFEST_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Says how many items a job has, and from where on its records stand on the topics."""

    tenant: str
    job: str
    items: int
    digest: str  # of all items: the same file twice is one job
    created: str  # RFC 3339
    sent: bool  # every item is acknowledged
    source: str = ""  # the file's name, for people
    model: str | None = None  # as submitted; None = the items' own
    deadline: str | None = None  # as submitted
    starts: Places = field(default_factory=dict)  # no record of the job stands before these offsets

    @property
    def key(self) -> JobKey:
        """Return whose job it is, and its name."""
        return self.tenant, self.job

    def encoded(self) -> bytes:
        """The value of its record."""
        return json.dumps({"schema": MANIFEST_SCHEMA, **asdict(self)}, separators=(",", ":")).encode()


def decoded_manifest(value: bytes | None) -> Manifest | None:
    """The manifest in a record's value; None for what is none."""
    try:
        told: dict[str, Any] = json.loads(value or b"null")
        names = Manifest.__dataclass_fields__
        found = {name: told[name] for name in names if name in told}
        starts = {
            topic: {int(number): int(offset) for number, offset in places.items()}
            for topic, places in found.pop("starts", {}).items()
        }
        return Manifest(**found, starts=starts)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
