"""What callers may take of this process: bytes, calls, connections and time. Each bound refuses its own call only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sidecar.core.settings import FORBID_UNKNOWN, require

MIB = 1 << 20
_POSITIVE = (
    *("message_bytes_max", "held_bytes_max", "calls_max", "calls_per_connection_max", "connection_idle_s"),
    *("ping_interval_s", "ping_timeout_s", "handshake_timeout_s", "http_connections_max", "http_idle_s"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Bounds that hold for all callers together, or for each message or connection."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    message_bytes_max: int = 64 * MIB  # one request: 16 million token ids, or a batch of images. Triton's is 2 GiB
    held_bytes_max: int = 512 * MIB  # all requests that wait or run; the Python process itself takes some 150 MiB
    calls_max: int = 8192  # open at once; each stream costs some 30 kB, and more than waiting places help nobody
    calls_per_connection_max: int = 1024  # as many as may wait by default; beyond it the client's library waits
    connection_idle_s: float = 1800.0  # without any call; the client's library connects again with the next one
    ping_interval_s: float = 60.0  # a caller whose machine is gone keeps its slot no longer than this and the timeout
    ping_timeout_s: float = 20.0  # gRPC's own default
    handshake_timeout_s: float = 10.0  # gRPC's own is 120 s; a client that is there says hello within a round trip
    http_connections_max: int = 64  # Prometheus, a probe, some viewers; beyond it the oldest is closed
    http_idle_s: float = 10.0  # to send a request, or to read on in its answer: Prometheus' own scrape timeout

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            require(getattr(self, name) > 0, f"limits: {name} must be > 0, not {getattr(self, name)}")
        for name in ("message_bytes_max", "calls_per_connection_max"):
            require(getattr(self, name) < 2**31, f"limits: {name} must be < 2^31, not {getattr(self, name)}")
        require(
            self.message_bytes_max <= self.held_bytes_max,
            f"limits: message_bytes_max must be <= held_bytes_max, not {self.message_bytes_max}",
        )

    def server_options(self) -> tuple[tuple[str, int], ...]:
        """gRPC's channel arguments for the callers' server."""
        return (
            ("grpc.max_send_message_length", -1),  # what an engine answers goes on, whatever its size
            ("grpc.max_receive_message_length", self.message_bytes_max),
            ("grpc.max_concurrent_streams", self.calls_per_connection_max),
            # Beyond 1,000 calls that wait to be taken gRPC drops some, whose they may be, with CANCELLED and no word of
            # why (measured: one of 25 of a caller who did nothing wrong). Ours are refused by calls_max, with a hint.
            ("grpc.server.max_pending_requests", min(2 * self.calls_max, 2**31 - 1)),
            ("grpc.server.max_pending_requests_hard_limit", min(4 * self.calls_max, 2**31 - 1)),
            ("grpc.max_connection_idle_ms", _ms(self.connection_idle_s)),
            ("grpc.keepalive_time_ms", _ms(self.ping_interval_s)),
            ("grpc.keepalive_timeout_ms", _ms(self.ping_timeout_s)),
            ("grpc.server_handshake_timeout_ms", _ms(self.handshake_timeout_s)),
            ("grpc.http2.max_pings_without_data", 0),  # a stream may wait for its first token for minutes
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),  # keepalive callers must not get GOAWAY
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.so_reuseport", 0),  # a second sidecar on the same port is an error, not a lottery
        )


def _ms(seconds: float) -> int:
    return min(max(1, round(seconds * 1000)), 2**31 - 1)
