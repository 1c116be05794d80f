"""What each aiokafka client needs to connect: addresses, certificates and secrets, read when it is made."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from aiokafka.abc import AbstractTokenProvider

from sidecar.core.errors import SettingsError
from sidecar.settings.offline import KafkaSecuritySettings, OfflineSettings


def client_id(settings: OfflineSettings) -> str:
    """Return how the broker's logs and quotas name this process."""
    return f"sidecar.{settings.instance_id}" if settings.instance_id else "sidecar"


def client_options(settings: OfflineSettings) -> dict[str, Any]:
    """What each aiokafka client needs to connect. Raises SettingsError if a secret or certificate cannot be read."""
    security = settings.security
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": client_id(settings),
        "security_protocol": security.protocol,
        "request_timeout_ms": int(settings.request_timeout_s * 1000),
    }
    try:
        if security.protocol.endswith("SSL"):
            options["ssl_context"] = _ssl_context(security)
        if security.protocol.startswith("SASL"):
            options |= _sasl(security)
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(f"kafka security: {error}") from error
    except UnicodeDecodeError:
        raise SettingsError(f"kafka security: {security.password_file} is not UTF-8") from None
    return options


def _ssl_context(security: KafkaSecuritySettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=security.ca_file)
    if security.certificate_file is not None:
        context.load_cert_chain(security.certificate_file, security.key_file)
    return context


def _sasl(security: KafkaSecuritySettings) -> dict[str, Any]:
    if security.mechanism == "OAUTHBEARER":
        return {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": _TokenFile(security.token_file)}
    password = security.password_file.read_text("utf-8").strip() if security.password_file else security.password
    if not password:
        raise SettingsError(f"kafka security: {security.password_file} is empty")
    return {
        "sasl_mechanism": security.mechanism,
        "sasl_plain_username": security.username,
        "sasl_plain_password": password,
    }


class _TokenFile(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka is untyped
    """Reads the token anew for each connection, so that a rotated one is used."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    async def token(self) -> str:
        return self._path.read_text().strip() if self._path else ""
