"""Who may come in: where the file of keys is, and what one key in it grants.

    keys: {file: /etc/sidecar/keys.yaml}

The file is a YAML list with one line for each key. `sidecar keys new` prints a key, and its line.

    - {key: "sha256:…", tenant: labels, lanes: [offline], weight: 2, tokens_per_minute: 200000}
    - {certificate: billing.example, tenant: billing, requests_per_minute: 600}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any, ClassVar

from sidecar.core.request import Lane
from sidecar.core.settings import FORBID_UNKNOWN, require

NAME_CHARS_MAX = 256
HASH = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysSettings:
    """Where the keys of callers are, and what asks for one beside the callers' port."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    file: Path  # the list of keys, read again when it changes
    http: bool = False  # the status page and /metrics ask for the key of an operator too; /healthz and /readyz never do


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """What one key, or one client certificate, grants."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    tenant: str  # whose requests these are; a header cannot name another one
    key: str = ""  # the hash of a key that callers send as `authorization: Bearer KEY`: sha256: and 64 hex digits
    certificate: str = ""  # instead: a name in the client's certificate, or sha256: and its fingerprint in hex digits
    lanes: tuple[Lane, ...] = (
        Lane.ONLINE,
        Lane.OFFLINE,
    )  # what may be asked for; else the first
    operator: bool = False  # may load and unload models, share memory with Triton, and see the status of all
    expires: datetime | None = None  # RFC 3339, e.g. 2027-01-31T00:00:00Z; None = when its line is taken out
    requests_per_minute: float = 0.0  # of this key, at one stroke or spread; 0 = no limit
    tokens_per_minute: float = 0.0  # prompt and output, booked at arrival; what was not generated is given back
    weight: float | None = None  # the tenant's share; None = as scheduler.tenants says, here and below
    waiting_max: int | None = None  # requests of the tenant that may wait, in each lane
    slots_max: int | None = None  # slots that the tenant may have at a time, in each lane

    def __post_init__(self) -> None:
        who = f"the key of tenant {self.tenant}"
        named = 0 < len(self.tenant) <= NAME_CHARS_MAX and self.tenant.isprintable()
        require(named, f"a key: tenant must be 1 to {NAME_CHARS_MAX} printable characters")
        require(bool(self.key) != bool(self.certificate), f"{who}: it needs either key or certificate")
        fits = not self.key or HASH.fullmatch(self.key) is not None
        require(fits, f"{who}: key must be sha256: and 64 hex digits, as `sidecar keys new` prints them, not the key")
        fits = not self.certificate.startswith("sha256:") or HASH.fullmatch(self.certificate) is not None
        require(fits, f"{who}: certificate must be a name, or sha256: and 64 hex digits in lower case")
        require(bool(self.lanes), f"{who}: lanes must name one")
        for name in ("requests_per_minute", "tokens_per_minute"):
            require(0 <= getattr(self, name) < inf, f"{who}: {name} must be >= 0, not {getattr(self, name)}")
        require(self.expires is None or self.expires.tzinfo is not None, f"{who}: expires needs a time zone, such as Z")

    @property
    def id(self) -> str:
        """What tells this key from the others."""
        return self.key or self.certificate

    def expired(self, now_s: float) -> bool:
        """True if it is no longer valid at `now_s`, in seconds since 1970."""
        return self.expires is not None and datetime.fromtimestamp(now_s, UTC) >= self.expires
