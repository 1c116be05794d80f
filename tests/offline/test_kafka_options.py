"""Secrets and certificates come from files, are read when a client is made, and are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.core.errors import SettingsError
from sidecar.offline.kafka_options import client_options
from sidecar.settings.offline import KafkaSecuritySettings, OfflineSettings


def test_a_password_is_read_from_its_file_and_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    by_file = KafkaSecuritySettings(protocol="SASL_PLAINTEXT", username="u", password_file=secret)
    by_environment = KafkaSecuritySettings(protocol="SASL_PLAINTEXT", username="u", password="hunter2")
    for security in (by_file, by_environment):
        settings = OfflineSettings(security=security)
        assert client_options(settings)["sasl_plain_password"] == "hunter2"
        assert "hunter2" not in repr(settings)


async def test_a_token_is_read_anew_for_each_connection(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    security = KafkaSecuritySettings(protocol="SASL_SSL", mechanism="OAUTHBEARER", token_file=token)
    provider = client_options(OfflineSettings(security=security))["sasl_oauth_token_provider"]
    assert await provider.token() == "first"
    token.write_text("second\n")
    assert await provider.token() == "second"


def test_a_secret_that_cannot_be_read_is_named() -> None:
    security = KafkaSecuritySettings(protocol="SASL_PLAINTEXT", username="u", password_file=Path("/nowhere/password"))
    with pytest.raises(SettingsError, match="/nowhere/password"):
        client_options(OfflineSettings(security=security))
