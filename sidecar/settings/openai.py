"""The HTTP port that speaks the OpenAI API: where it is, and what one request may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sidecar.core.settings import FORBID_UNKNOWN, require

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiSettings:
    """Without this section nothing listens."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    listen: str = "127.0.0.1:8103"  # host:port; programs name http://HOST:PORT/v1 as their base_url
    model_default: str | None = None  # for requests that name no model; null = that of the first engine
    max_tokens_default: int = 1024  # of an answer, where a request states no bound
    body_bytes_max: int = 8 * MIB  # of one request; a prompt of 1 M tokens has some 4 MiB
    held_bytes_max: int = 256 * MIB  # of all requests that wait or run; beyond it a request is refused with 429
    body_timeout_s: float = 30.0  # for a body to come; a program that sends no more is answered with 408
    requests_max: int = 1024  # open at once; beyond it a request is refused with 429

    def __post_init__(self) -> None:
        for name in ("max_tokens_default", "body_bytes_max", "body_timeout_s", "requests_max"):
            require(getattr(self, name) > 0, f"openai: {name} must be > 0, not {getattr(self, name)}")
        enough = self.held_bytes_max >= self.body_bytes_max
        require(enough, f"openai: held_bytes_max must be >= body_bytes_max, not {self.held_bytes_max}")
