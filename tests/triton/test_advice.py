"""An engine that is down is told with what to do about it."""

from __future__ import annotations

import pytest

from sidecar.triton.advice import with_advice


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("UNAVAILABLE: failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:8000: Socket closed",
         "what listens there speaks no gRPC"),
        ("UNAVAILABLE: failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:8009: Failed to connect"
         " to remote host: Connection refused", "nothing listens there"),
        ("UNAVAILABLE: DNS resolution failed for tritn:8001", "cannot be resolved"),
        ("NOT_FOUND: Request for unknown model: 'x' is not found", "engines[].model names a model"),
    ],
)  # fmt: skip
def test_what_is_known_to_help_stands_behind_the_reason(reason: str, advice: str) -> None:
    told = with_advice(reason)
    assert told.startswith(f"{reason} (")
    assert advice in told


def test_a_reason_that_nobody_knows_stays_as_it_is() -> None:
    assert with_advice("INTERNAL: odd") == "INTERNAL: odd"
