"""A request: what one caller's message or one offline item asks of an engine, as the scheduler sees it.

The scheduler knows neither text nor tensors. It knows lengths, an order and a promise; the drivers keep the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import inf, isfinite, isnan


class Lane(StrEnum):
    """Who waits for the answer."""

    ONLINE = "online"  # a client waits on gRPC
    OFFLINE = "offline"  # an item from Kafka, or a gRPC call that asked for this lane


# For the hot path: until Python 3.12, looking up a member of an enum costs four times what a plain name does.
ONLINE, OFFLINE = Lane.ONLINE, Lane.OFFLINE


class DispatchKind(StrEnum):
    """Why a request got its slot."""

    ONLINE = "online"
    BACKFILL = "backfill"  # the slot was left idle by online work
    RESERVED = "reserved"  # a reserved dispatch: online work waited, and offline was due
    RESUME = "resume"  # a further slice of a request, or a preempted one; never a reserved dispatch


class EndReason(StrEnum):
    """Why the engine finished a call by itself."""

    END_ID = "end_id"
    STOP_WORD = "stop_word"
    LENGTH = "length"  # the output token budget of this dispatch is used up


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. Frozen: what changes about it (tokens so far, attempts, state) is in a `TrackedRequest`.

    Token counts are in tokens of the engine's tokenizer; times in seconds of the driver's clock.
    """

    id: str  # unique among all requests alive; minted by the edge, never the caller's
    lane: Lane
    model: str  # the engine model that must run it, e.g. "tensorrt_llm"; several engines may serve it
    arrived_s: float
    prompt_tokens: int  # an estimate from bytes where the prompt is only text
    output_tokens_max: int  # the caller's bound; the true length is unknown to everyone
    tenant: str = "default"
    deadline_s: float = inf
    slots: int = 1  # one per sequence that the call returns
    resumable: bool = True  # False: never sliced, and restarted instead of resumed (beams, logprobs, resume=never)
    splits_prompt: bool = True  # False: its prompt is never sent in chunks (tensors that go to the engine as they are)
    ttft_objective_ms: float = 0.0  # its own, from arrival to first token; 0 = the scheduler's
    job: str = ""  # the producer's name for the requests that belong together
    prefix_key: str = ""  # equal for prompts whose leading blocks are equal; "" = unknown

    def __post_init__(self) -> None:
        if self.prompt_tokens < 0 or self.output_tokens_max < 1 or self.slots < 1:
            raise ValueError(f"a request needs prompt_tokens >= 0, output_tokens_max >= 1 and slots >= 1: {self}")
        if not isfinite(self.arrived_s) or isnan(self.deadline_s):  # such a one would spoil the order of all others
            raise ValueError(f"a request needs a finite arrived_s and a deadline_s that is a number: {self}")
        if not 0 <= self.ttft_objective_ms < inf:
            raise ValueError(f"a request needs a finite ttft_objective_ms >= 0: {self}")

    def is_complete(self, generated_tokens: int, reason: EndReason) -> bool:
        """True if an end for `reason` with `generated_tokens` in all is the end of the request, not only of a slice."""
        return reason is not EndReason.LENGTH or generated_tokens >= self.output_tokens_max
