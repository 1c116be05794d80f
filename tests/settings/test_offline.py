"""Settings of the offline lane: what cannot work is refused by name, with the value and the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar.core.errors import SettingsError
from sidecar.settings.offline import KafkaSecuritySettings, OfflineSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bootstrap_servers": ""}, "bootstrap_servers must name a broker"),
        *(
            ({"bootstrap_servers": servers}, "must be host:port of a broker")
            for servers in ("a:b:c", "a:99999", "a:0", "PLAINTEXT://a:9092", "a:9092,", "a b:9092", "a:-1", "[::1:9092")
        ),
        ({"requests_topic": ""}, "requests_topic must be 1 to 249 of the characters"),
        ({"results_topic": "a b"}, "results_topic must be 1 to 249 of the characters"),
        ({"dead_letter_topic": "a" * 250}, "dead_letter_topic must be 1 to 249 of the characters"),
        ({"progress_topic": "ä"}, "progress_topic must be 1 to 249 of the characters"),
        ({"pending_max": 0}, "pending_max must be in 1..1000, not 0"),
        ({"pending_max": 1001}, "pending_max must be in 1..1000, not 1001"),
        (
            {"pending_max": 1000, "metadata_chars_max": 2000},
            "may need 2757 characters of metadata, the broker takes 2000",
        ),
        ({"item_bytes_max": 9, "message_bytes_max": 8}, "item_bytes_max 9 exceeds message_bytes_max 8"),
        ({"heartbeat_s": 15.0}, "heartbeat_s 15.0 must be well below session_timeout_s 30.0"),
        ({"tick_s": 0.0}, "tick_s must be > 0, not 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        OfflineSettings(**settings)


@pytest.mark.parametrize(
    "servers", ["a", "a:9092, b-1.c:9093", "127.0.0.1:1", "[::1]:9092", "[fe80::1]", "::1", "a_b:65535"]
)
def test_brokers_are_named_in_every_form_that_the_client_reads(servers: str) -> None:
    assert OfflineSettings(bootstrap_servers=servers).bootstrap_servers == servers


@pytest.mark.parametrize(
    ("security", "message"),
    [
        ({"protocol": "SASL_SSL"}, "SCRAM-SHA-512 needs username and a password"),
        ({"protocol": "SASL_SSL", "username": "u"}, "needs username and a password"),
        ({"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER"}, "OAUTHBEARER needs token_file"),
        ({"protocol": "SSL", "key_file": Path("k")}, "certificate_file and key_file go together"),
    ],
)
def test_security_that_cannot_work_is_refused(security: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        KafkaSecuritySettings(**security)
