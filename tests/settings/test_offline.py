"""Settings of the offline lane: what cannot work is refused by name, with the value and the limit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from aiokafka.conn import collect_hosts
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.errors import SettingsError
from sidecar.settings.offline import KafkaSecuritySettings, OfflineSettings, metadata_chars_max


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


TOPICS = ("requests_topic", "results_topic", "dead_letter_topic")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *((one, other) for one in TOPICS for other in TOPICS if one < other),
        *((each, "progress_topic") for each in TOPICS),
    ],
)
def test_no_two_topics_have_one_name(first: str, second: str) -> None:
    with pytest.raises(SettingsError, match="each topic needs a name of its own, but same is named twice"):
        OfflineSettings(**{first: "same", second: "same"})  # type: ignore[arg-type]


def test_without_a_topic_for_progress_none_is_told() -> None:
    assert OfflineSettings(progress_topic="").progress_topic == ""


@pytest.mark.parametrize(
    "name",
    [
        *("tick_s", "results_per_commit", "call_timeout_s", "stuck_after_s", "poison_restarts", "look_again_s"),
        *("rebalance_timeout_s", "transaction_timeout_s", "request_timeout_s", "metadata_max_age_s", "heartbeat_s"),
        *("max_tokens_default", "pending_bytes_max", "item_bytes_max"),
    ],
)
@pytest.mark.parametrize("value", [0, -1])
def test_what_has_to_be_more_than_nothing_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(SettingsError, match=f"kafka: {name} must be > 0, not {value}"):
        OfflineSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["session_timeout_s", "rebalance_timeout_s", "transaction_timeout_s"])
def test_a_time_for_the_protocol_has_whole_milliseconds_of_32_bits(name: str) -> None:
    assert getattr(OfflineSettings(**{name: 2_147_483}), name) == 2_147_483  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=f"kafka: {name} must be 0.001 to 2147483 seconds, not 2.14748e"):
        OfflineSettings(**{name: 2_147_484})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["group", "model_default"])
def test_a_name_that_has_to_be_there_is_not_empty(name: str) -> None:
    with pytest.raises(SettingsError, match=f"kafka: {name} must name"):
        OfflineSettings(**{name: ""})  # type: ignore[arg-type]


def test_a_partition_may_hold_as_many_items_as_its_span_has_offsets() -> None:
    assert OfflineSettings(span_max=256, pending_max=256).span_max == 256
    with pytest.raises(SettingsError, match="span_max must be >= pending_max, not 255"):
        OfflineSettings(span_max=255, pending_max=256)


@given(gaps=st.integers(0, 1000), span=st.integers(0, 5_000_000), more=st.integers(0, 1000))
def test_more_gaps_or_a_longer_span_never_need_less_metadata(gaps: int, span: int, more: int) -> None:
    assert metadata_chars_max(gaps, span) <= metadata_chars_max(gaps + more, span + more)
    assert metadata_chars_max(gaps, span) <= metadata_chars_max(gaps, span + more)


@given(
    host=st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True),
    port=st.integers(-5, 70_000) | st.none(),
    blanks=st.sampled_from(["", " "]),
)
def test_a_broker_is_a_host_with_or_without_a_port(host: str, port: int | None, blanks: str) -> None:
    servers = blanks + (host if port is None else f"{host}:{port}")
    if port is None or 0 < port <= 65_535:
        OfflineSettings(bootstrap_servers=servers)
        assert collect_hosts(servers, randomize=False)[0][1] == (9092 if port is None else port)
        return
    with pytest.raises(SettingsError, match=re.escape(f"not '{servers.strip()}'")):
        OfflineSettings(bootstrap_servers=servers)


def test_no_secret_is_in_the_text_of_the_settings() -> None:
    security = KafkaSecuritySettings(protocol="SASL_SSL", username="u", password="hunter2")
    assert "hunter2" not in f"{OfflineSettings(security=security)} {security!r}"
