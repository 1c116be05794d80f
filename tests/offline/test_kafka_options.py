"""Secrets and certificates come from files, are read when a client is made, and are never shown."""

from __future__ import annotations

import ssl
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


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "No such file"), (b"no certificate", "kafka security: "), (b"", "kafka security: ")],
)
def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=told):
        client_options(OfflineSettings(security=KafkaSecuritySettings(protocol="SSL", ca_file=file)))


def test_a_certificate_of_ours_that_is_none_is_named(tmp_path: Path) -> None:
    for name in ("certificate", "key"):
        (tmp_path / name).write_text("nothing")
    security = KafkaSecuritySettings(
        protocol="SSL", certificate_file=tmp_path / "certificate", key_file=tmp_path / "key"
    )
    with pytest.raises(SettingsError, match="kafka security: "):
        client_options(OfflineSettings(security=security))


@pytest.mark.parametrize(
    ("content", "told"), [(b" \n", "password is empty"), (b"\xff\xfe", "password is not UTF-8"), (b"", "is empty")]
)
def test_a_password_file_that_holds_none_is_named_without_what_it_holds(
    tmp_path: Path, content: bytes, told: str
) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    security = KafkaSecuritySettings(protocol="SASL_SSL", username="u", password_file=file)
    with pytest.raises(SettingsError, match=told) as raised:
        client_options(OfflineSettings(security=security))
    assert "xff" not in str(raised.value)


def test_without_security_nothing_is_read_and_each_client_has_the_processes_name() -> None:
    settings = OfflineSettings(bootstrap_servers="a:1,b:2", instance_id="pod-0", request_timeout_s=0.0015)
    assert client_options(settings) == {
        "bootstrap_servers": "a:1,b:2",
        "client_id": "sidecar.pod-0",
        "security_protocol": "PLAINTEXT",
        "request_timeout_ms": 1,
    }
    assert client_options(OfflineSettings())["client_id"] == "sidecar"


def test_a_secured_connection_checks_the_brokers_name() -> None:
    context = client_options(OfflineSettings(security=KafkaSecuritySettings(protocol="SSL")))["ssl_context"]
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_plain_login_sends_the_name_and_the_chosen_mechanism() -> None:
    security = KafkaSecuritySettings(protocol="SASL_PLAINTEXT", mechanism="PLAIN", username="u", password="p")
    options = client_options(OfflineSettings(security=security))
    assert "ssl_context" not in options
    assert (options["sasl_mechanism"], options["sasl_plain_username"]) == ("PLAIN", "u")
