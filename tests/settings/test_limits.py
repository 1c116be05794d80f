"""Bounds for all callers: a nonsense value is refused by name, and gRPC gets them as the numbers that it takes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.errors import SettingsError
from sidecar.settings.limits import MIB, LimitSettings

NAMES = [field.name for field in fields(LimitSettings)]
INT32_MAX = 2**31 - 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1])
def test_no_bound_is_zero_or_negative(name: str, value: int) -> None:
    with pytest.raises(SettingsError, match=f"limits: {name} must be > 0, not {value}"):
        LimitSettings(**{name: value})


@pytest.mark.parametrize("name", ["message_bytes_max", "calls_per_connection_max"])
def test_what_grpc_takes_in_32_bits_has_no_more(name: str) -> None:
    most: dict[str, Any] = {name: INT32_MAX, "held_bytes_max": 2**40}
    assert getattr(LimitSettings(**most), name) == INT32_MAX
    with pytest.raises(SettingsError, match=rf"limits: {name} must be < 2\^31, not {2**31}"):
        LimitSettings(**(most | {name: 2**31}))


def test_one_request_fits_into_what_all_may_hold() -> None:
    assert LimitSettings(message_bytes_max=MIB, held_bytes_max=MIB).held_bytes_max == MIB
    with pytest.raises(SettingsError, match=f"message_bytes_max must be <= held_bytes_max, not {MIB + 1}"):
        LimitSettings(message_bytes_max=MIB + 1, held_bytes_max=MIB)


@settings(max_examples=40)
@given(
    idle_s=st.floats(1e-9, 1e12),
    ping_s=st.floats(1e-9, 1e12),
    timeout_s=st.floats(1e-9, 1e12),
    handshake_s=st.floats(1e-9, 1e12),
    calls=st.integers(1, INT32_MAX),
)
def test_grpc_gets_numbers_of_32_bits_and_never_a_time_of_zero(
    idle_s: float, ping_s: float, timeout_s: float, handshake_s: float, calls: int
) -> None:
    options = dict(
        LimitSettings(
            connection_idle_s=idle_s,
            ping_interval_s=ping_s,
            ping_timeout_s=timeout_s,
            handshake_timeout_s=handshake_s,
            calls_per_connection_max=calls,
        ).server_options()
    )
    times = {name: value for name, value in options.items() if name.endswith(("_ms", "keepalive_timeout_ms"))}
    assert len(times) == 5
    assert all(type(value) is int and 1 <= value <= INT32_MAX for value in times.values())
    assert options["grpc.max_concurrent_streams"] == calls
    exact_ms = round(idle_s * 1000)
    if 1 <= exact_ms <= INT32_MAX:
        assert options["grpc.max_connection_idle_ms"] == exact_ms


def test_answers_are_not_bounded_and_requests_are() -> None:
    options = dict(LimitSettings(message_bytes_max=5 * MIB).server_options())
    assert options["grpc.max_send_message_length"] == -1
    assert options["grpc.max_receive_message_length"] == 5 * MIB
    assert options["grpc.so_reuseport"] == 0  # a second sidecar on the port is an error
