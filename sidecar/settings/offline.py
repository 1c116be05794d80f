"""The settings of the offline lane. A nonsense value cannot be built; each default has its reason beside it."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from sidecar.core.settings import FORBID_UNKNOWN, require

SERVERS = "host:port of a broker, or several with commas between, without a protocol before them"
TOPIC_RULE = "1 to 249 of the characters a-z A-Z 0-9 . _ -"
PORT_MAX = 65535
METADATA_CHARS_MAX = 4096  # the broker's default offset.metadata.max.bytes, compared with the string's length
# These go to the broker, or to its client, as whole milliseconds of 32 bits.
_PROTOCOL_TIMES = (
    *("session_timeout_s", "heartbeat_s", "rebalance_timeout_s", "transaction_timeout_s", "request_timeout_s"),
    "metadata_max_age_s",
)
_SERVER = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+)(?::(?P<port>\d{1,5}))?", re.ASCII)
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSecuritySettings:
    """How to reach a broker that wants to know who we are. Secrets come from files, read at each (re)connection."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"  # as Kafka names them
    # for the two with SASL
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "SCRAM-SHA-512"
    username: str = ""  # for PLAIN and SCRAM
    password_file: Path | None = None  # a mounted secret: one line, the trailing newline is cut
    password: str = field(default="", repr=False)  # for the environment override only; never in the settings file
    token_file: Path | None = None  # OAUTHBEARER: a token that somebody else keeps fresh (a projected volume)
    ca_file: Path | None = None  # None = the system's certificate authorities
    certificate_file: Path | None = None  # mutual TLS
    key_file: Path | None = None  # the key of certificate_file

    def __post_init__(self) -> None:
        if self.protocol.startswith("SASL"):
            if self.mechanism == "OAUTHBEARER":
                require(self.token_file is not None, "kafka security: OAUTHBEARER needs token_file")
            else:
                secret = self.password_file is not None or bool(self.password)
                require(
                    bool(self.username) and secret, f"kafka security: {self.mechanism} needs username and a password"
                )
        require(
            (self.certificate_file is None) == (self.key_file is None),
            "kafka security: certificate_file and key_file go together",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineSettings:
    """Where items come from, where results go, and what bounds the work in between."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    bootstrap_servers: str = "127.0.0.1:9092"  # host:port of some brokers, with commas
    security: KafkaSecuritySettings = field(default_factory=KafkaSecuritySettings)
    requests_topic: str = "inference.requests"  # where items come from
    results_topic: str = "inference.results"  # at least as many partitions as requests
    dead_letter_topic: str = "inference.requests.dlq"  # likewise
    progress_topic: str = ""  # how far each job is; "" = not told; compacted, and as many partitions as requests
    jobs_topic: str = ""  # what was submitted, and what is ordered of it; "" = jobs cannot be cancelled; compacted
    group: str = "sidecar"  # the consumer group; its offsets say what is done
    instance_id: str = ""  # stable per process (a StatefulSet's pod name): a restart then costs no rebalance
    first_start: Literal["refuse", "earliest", "latest"] = "refuse"  # a group without offsets, or one that lost them
    model_default: str = "tensorrt_llm"  # the model or alias of items that name none
    max_tokens_default: int = 256  # for items that do not say
    item_bytes_max: int = 1 << 20  # larger ones are dead letters, unparsed
    message_bytes_max: int = 2 << 20  # of one record; at most the topics' max.message.bytes
    pending_max: int = 256  # items per partition delivered and not committed; bounds memory and the metadata
    pending_bytes_max: int = 64 << 20  # the same in bytes of item values
    span_max: int = 1_000_000  # offsets between the watermark and the newest item: what a restart reads again
    tick_s: float = 0.25  # between commits of one partition; a result is visible some milliseconds after its tick
    results_per_commit: int = 100  # a commit happens earlier when so many wait
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "lz4"  # of results and dead letters
    session_timeout_s: float = 30.0  # a dead member's partitions stand still for this long
    heartbeat_s: float = 3.0  # well below session_timeout_s
    rebalance_timeout_s: float = 60.0  # how long a rebalance waits for slow members
    transaction_timeout_s: float = 15.0  # the broker aborts what a dead owner left open, if no successor does before
    request_timeout_s: float = 10.0  # of one request to a broker
    call_timeout_s: float = 20.0  # around opening and committing: aiokafka retries them for ever
    revoke_commit_s: float = 5.0  # for a last commit when partitions are taken away; far below rebalance_timeout_s
    stuck_after_s: float = 120.0  # lag, room, and nothing fetched for this long: make the consumer anew
    look_again_s: float = 30.0  # at most between two looks at what a person has to mend; the first ones come sooner
    metadata_max_age_s: float = 30.0  # added partitions are noticed within this time; the client's own is five minutes
    poison_restarts: int = 3  # unclean ends without progress before items run one at a time to find the culprit
    metadata_chars_max: int = METADATA_CHARS_MAX  # the broker's offset.metadata.max.bytes
    abort_fence: bool = False  # for brokers that may skip transaction markers (KAFKA-20734: 4.3.0 to 4.4.0)

    def __post_init__(self) -> None:
        require(bool(self.bootstrap_servers), "kafka: bootstrap_servers must name a broker")
        for server in self.bootstrap_servers.split(","):
            require(_is_server(server.strip()), f"kafka: bootstrap_servers must be {SERVERS}, not {server.strip()!r}")
        topics = ("requests_topic", "results_topic", "dead_letter_topic")
        further = tuple(name for name in ("progress_topic", "jobs_topic") if getattr(self, name))
        for name in (*topics, *further):
            topic = getattr(self, name)
            require(_TOPIC.fullmatch(topic) is not None, f"kafka: {name} must be {TOPIC_RULE}, not {topic!r:.60}")
        names = [getattr(self, name) for name in (*topics, *further)]
        twice = sorted({topic for topic in names if names.count(topic) > 1})
        # What the lane writes would be read as items, or as something else than it is.
        require(not twice, f"kafka: each topic needs a name of its own, but {', '.join(twice)} is named twice")
        require(bool(self.group), "kafka: group must name the consumer group")
        require(bool(self.model_default), "kafka: model_default must name a model")
        require(1 <= self.pending_max <= 1000, f"kafka: pending_max must be in 1..1000, not {self.pending_max}")
        require(self.span_max >= self.pending_max, f"kafka: span_max must be >= pending_max, not {self.span_max}")
        needed = metadata_chars_max(self.pending_max, self.span_max)
        require(
            needed <= self.metadata_chars_max,
            f"kafka: pending_max {self.pending_max} within span_max {self.span_max} may need {needed} characters of "
            f"metadata, the broker takes {self.metadata_chars_max}",
        )
        require(
            self.item_bytes_max <= self.message_bytes_max,
            f"kafka: item_bytes_max {self.item_bytes_max} exceeds message_bytes_max {self.message_bytes_max}",
        )
        require(
            self.heartbeat_s * 2 < self.session_timeout_s,
            f"kafka: heartbeat_s {self.heartbeat_s} must be well below session_timeout_s {self.session_timeout_s}",
        )
        positive: tuple[str, ...] = (
            "tick_s",
            "results_per_commit",
            "call_timeout_s",
            "stuck_after_s",
            "poison_restarts",
        )
        positive += ("look_again_s", "metadata_max_age_s")
        for name in (*positive, *_PROTOCOL_TIMES, "max_tokens_default", "pending_bytes_max", "item_bytes_max"):
            require(getattr(self, name) > 0, f"kafka: {name} must be > 0, not {getattr(self, name)}")
        for name in _PROTOCOL_TIMES:
            milliseconds = getattr(self, name) * 1000
            require(
                1 <= milliseconds < 2**31,
                f"kafka: {name} must be 0.001 to 2147483 seconds, not {milliseconds / 1000:g}",
            )
        require(self.revoke_commit_s >= 0, f"kafka: revoke_commit_s must be >= 0, not {self.revoke_commit_s}")


def _is_server(text: str) -> bool:
    """True if aiokafka can look for a broker there; what it cannot parse it raises as a plain ValueError, later."""
    if (found := _SERVER.fullmatch(text)) is not None:
        return 0 < int(found["port"] or 1) <= PORT_MAX
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(text).version == 6  # without brackets, and so without a port
    return False


def metadata_chars_max(gaps: int, span: int) -> int:
    """The longest metadata string that this many gaps within this many offsets can need.

    A gap of g takes ceil(bits(g) / 7) bytes, so the worst case spends the span on as many long gaps as it can.
    """
    left, longer = max(0, span - gaps), 0
    for cost in (127, 16_256, 2_080_768):
        count = min(gaps, left // cost)
        left -= count * cost
        longer += count
    restarts_bytes = 2 + 5  # up to 16,383 restarts, a suspect within 2**35 offsets
    packed = 1 + restarts_bytes + 4 + gaps + longer
    return 3 + (packed * 4 + 2) // 3
