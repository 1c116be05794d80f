"""The narrow port between the offline lane and the driver: what to generate, and what came of it.

The offline lane (Kafka, or a gRPC call that asked for the offline lane) knows items; the driver knows slots and
streams. `Driver.generate(request, call)` runs the call in as many slices and attempts as it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sidecar.call import Metadata
from sidecar.core.errors import SidecarError
from sidecar.core.request import EndReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. None leaves the engine's default; the names are those of the engine's tensors."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCall:
    """One generation by token ids: what the item asks for in all, whatever slices it runs in."""

    prompt_ids: tuple[int, ...]
    output_tokens_max: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_words: tuple[tuple[int, ...], ...] = ()  # each a sequence of token ids, matched as ids
    stop_texts: tuple[str, ...] = ()  # matched in the decoded output, wherever they lie; need `decode`
    decode: Callable[[Sequence[int]], str] | None = None  # the text of output ids, special tokens left out
    end_id: int | None = None
    further_end_ids: tuple[int, ...] = ()  # they end the output as `end_id` does; the engine takes them as stop words
    traceparent: str | None = None
    metadata: Metadata | None = None  # the caller's, for the engine; None = the sidecar's own work, with its own keys
    tell: Callable[[Sequence[int]], None] | None = None  # hears the ids that are kept: a caller's as they come
    resumable: bool = True  # False: runs whole, because a resume would change the answer (a seed, penalties, …)

    def __post_init__(self) -> None:
        if self.stop_texts and self.decode is None:
            raise ValueError("a call with stop_texts needs decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What the engine gave for a TokenCall: all slices joined. Times in seconds of the driver's clock."""

    output_ids: tuple[int, ...]  # all that the engine sent and that were kept; an end id, if it sent one, is the last
    reason: EndReason
    engine: str  # of the last slice
    dispatches: int  # slots given to it in all
    resumed: int  # how often it went on from tokens it already had
    attempts: int  # 1 + retryable failures
    queue_wait_s: float  # summed over its dispatches
    first_token_s: float
    finished_s: float
    text: str | None = None  # the decoded output, cut before the first stop text; None without `TokenCall.decode`


class RequestRejectedError(SidecarError):
    """The scheduler refused the request before it ran; try later, or not at all (see `reason`)."""

    def __init__(self, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class RequestDeadError(SidecarError):
    """The item will not be tried again; it belongs on the dead-letter topic with this reason."""

    def __init__(self, reason: str, attempts: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.attempts = attempts
