"""What changes about a request while the scheduler has it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sidecar.core.request import Request


class RequestState(StrEnum):
    """Where a request is. The table of its transitions stands in `scheduler.py`."""

    WAITING = "waiting"  # in the queue of its lane
    BACKING_OFF = "backing_off"  # failed; returns to its queue at a set time
    RUNNING = "running"  # dispatched; one terminal event is owed
    PREEMPTING = "preempting"  # told to stop; its slots are DRAINING until the terminal event, then it waits anew
    ABORTING = "aborting"  # told to stop for good; its slots are DRAINING until the terminal event
    GONE = "gone"


# From where a request may go where, and by what.
TRANSITIONS: dict[RequestState, dict[RequestState, str]] = {
    RequestState.WAITING: {
        RequestState.RUNNING: "dispatched",
        RequestState.GONE: "cancelled, or rejected",
    },
    RequestState.BACKING_OFF: {
        RequestState.WAITING: "its time came",
        RequestState.GONE: "cancelled, or rejected",
    },
    RequestState.RUNNING: {
        RequestState.WAITING: "its slice is over, or its stream broke",
        RequestState.BACKING_OFF: "failed",
        RequestState.PREEMPTING: "online needs what it holds",
        RequestState.ABORTING: "cancelled",
        RequestState.GONE: "complete, or dead",
    },
    RequestState.PREEMPTING: {
        RequestState.WAITING: "the engine confirmed the stop",
        RequestState.BACKING_OFF: "failed",
        RequestState.ABORTING: "cancelled",
        RequestState.GONE: "complete, or dead",
    },
    RequestState.ABORTING: {
        RequestState.GONE: "the engine confirmed the stop",
    },
    RequestState.GONE: {},
}


@dataclass(slots=True, eq=False)
class TrackedRequest:
    """One request and its fate so far. Owned by the scheduler; nobody else changes it.

    A request knows its engine, its tenant and its job by name alone; who asks for one of them looks it up.
    """

    request: Request
    sequence: int  # order of arrival, which breaks ties
    waiting_since_s: float
    state: RequestState = RequestState.WAITING
    place: tuple[float, int] | None = None  # in its queue: when a first token is due, and a sequence
    ticket: int = 0  # the push whose heap entry is the live one; 0 = in no queue
    generated_tokens: int = 0  # kept from the dispatches that are over
    streamed_tokens: int = 0  # of the dispatch in progress, as far as reported
    account: str = ""  # whose requests it is among, since it first waited
    job: tuple[str, str] | None = None  # of an offline one: what it counts under among the jobs of its model
    prompt_charged: bool = False
    charged_tokens: int = 0  # of its output
    deadline_set: bool = False  # a timer for its deadline was set, once and for all
    attempts: int = 0  # failures so far
    losses: int = 0  # engines lost under it since it last got on
    first_token_s: float = 0.0  # when its first dispatch that gave one did; 0 = none yet
    preemptions: int = 0  # how often it was stopped for online work that lacked its slot
    engine: str = ""  # where it runs; "" = nowhere
    cached_tokens: int = 0  # of its context, as far as the KV cache of `cached_on` should still hold it
    cached_on: str = ""  # the engine that it ran on last; "" = none, or that has forgotten it
    cached_elsewhere: tuple[tuple[str, int], ...] = ()  # the same of engines that it ran on before
    # Of the dispatch in progress:
    budget_tokens: int = 0  # output tokens dispatched
    prompt_tokens: int | None = None  # ids sent, if it only fills the cache
    expected_reuse: int = 0
    reserved: bool = False  # a reserved dispatch, which nothing stops
    stop_asked_s: float = 0.0
    kv_tokens: int = 0  # held in the ledger
    prefill_tokens: int = 0  # held in the ledger until the first token
    begun_s: float = 0.0
    added_at_s: float = 0.0  # what the clock of offline's share (`Attribution`) said when it began
    decode_at_s: float = 0.0  # the same of the time in which online only decoded, when its first token came
    decode_added_at_s: float = 0.0  # ... and of offline's share of that
    queued_added_s: float = 0.0  # of its wait for a slot, what offline held it up
    uncomputed_tokens: int = 0  # of its prompt, as far as the attribution knows
    interrupted_mid_prompt: bool = False  # its last dispatch: an unknown part of the prompt is in the KV cache
    decoding: bool = False  # its first token has come

    def move(self, state: RequestState) -> None:
        """It is in that state now, to which its last one must lead."""
        assert state in TRANSITIONS[self.state], f"{self.request.id}: {self.state} → {state}"
        self.state = state

    def keep(self, tokens: int) -> None:
        """The dispatch is over, and so many tokens of it stay."""
        self.generated_tokens += tokens
        self.streamed_tokens = 0

    def cached_tokens_on(self, engine: str) -> int:
        """How much of its context the KV cache of `engine` should still hold because it ran there."""
        if self.cached_on == engine:
            return self.cached_tokens
        return next((tokens for name, tokens in self.cached_elsewhere if name == engine), 0)

    def ran_on(self, engine: str, cached_tokens: int) -> None:
        """The cache of `engine` holds so much of its context now. What other engines hold of it may serve again."""
        if self.cached_on != engine:
            self._leave_out(engine)
            if self.cached_on:
                self.cached_elsewhere += ((self.cached_on, self.cached_tokens),)
        self.cached_on, self.cached_tokens = engine, cached_tokens

    def lost_on(self, engine: str) -> None:
        """Nothing is known any more of what the cache of `engine` holds of it."""
        self._leave_out(engine)
        if self.cached_on == engine:
            self.cached_on, self.cached_tokens = "", 0

    def _leave_out(self, engine: str) -> None:
        if self.cached_elsewhere:
            self.cached_elsewhere = tuple(each for each in self.cached_elsewhere if each[0] != engine)

    @property
    def context_tokens(self) -> int:
        """Prompt and generated tokens: what a dispatch sends."""
        return self.request.prompt_tokens + self.generated_tokens

    @property
    def engine_runs(self) -> bool:
        """True if it is dispatched and nobody has told it to stop."""
        return self.state is RequestState.RUNNING

    @property
    def may_be_stopped(self) -> bool:
        """True if it is dispatched, nobody has told it to stop, and it is not a reserved dispatch."""
        return self.state is RequestState.RUNNING and not self.reserved

    @property
    def fills_cache(self) -> bool:
        """True if its dispatch only computes a chunk of its context."""
        return self.prompt_tokens is not None

    @property
    def output_tokens_left(self) -> int:
        """How many tokens it may still generate; at least 1, or it would be gone."""
        return self.request.output_tokens_max - self.generated_tokens
