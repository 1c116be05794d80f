"""Which certificates and keys stand at which of the sidecar's connections. All are PEM files, read again when changed.

tls:
  listen: {certificate_file: /tls/tls.crt, key_file: /tls/tls.key, client_ca_file: /tls/callers.pem}
  engines: {ca_file: /tls/engines.pem}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sidecar.core.settings import FORBID_UNKNOWN, require


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTlsSettings:
    """What the sidecar shows at a port of its own, and whom it lets in."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    certificate_file: Path  # the sidecar's own certificate first, then those that lead to its authority
    key_file: Path  # the private key of certificate_file, without a password
    client_ca_file: Path | None = None  # whoever connects must show a certificate of these; None = none is asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTlsSettings:
    """Whom the sidecar believes when it connects, and what it shows itself."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    ca_file: Path  # the authorities that are believed; /etc/ssl/certs/ca-certificates.crt for the system's
    certificate_file: Path | None = None  # mutual TLS: the sidecar's own certificate
    key_file: Path | None = None  # the private key of certificate_file, without a password
    server_name: str = ""  # the name in the server's certificate; "" = the host of its address

    def __post_init__(self) -> None:
        paired = (self.certificate_file is None) == (self.key_file is None)
        require(paired, "tls: certificate_file and key_file go together")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """TLS by connection. What is None speaks without."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    listen: ServerTlsSettings | None = None  # the callers' port
    http: ServerTlsSettings | None = None  # the port of metrics, health and status
    openai: ServerTlsSettings | None = None  # the port of the OpenAI API
    engines: ClientTlsSettings | None = None  # the gRPC port of every engine's Triton
    tracing: ClientTlsSettings | None = None  # the collector of spans
