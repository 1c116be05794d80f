"""A caller's request that goes to the engine as it came, under an id of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sidecar.call import Metadata, Terminal, Timeline
from sidecar.core.events import DeadLetter, Dispatch, Reject
from sidecar.core.request import EndReason, Lane, Request
from sidecar.frontend import statuses
from sidecar.frontend.caller_request import CallerRequest
from sidecar.frontend.final_response import final_answer
from sidecar.frontend.statuses import Booked, CallerError
from sidecar.triton import wire

Deliver = Callable[[Any], None]  # a ModelStreamInferResponse
Over = Callable[[Booked, CallerError | None], None]  # called once, after all that is delivered


class RelayedCall:
    """A driver's Call for one gRPC request."""

    def __init__(
        self,
        asked: CallerRequest,
        model: str,
        request: Request,
        metadata: Metadata,
        deliver: Deliver,
        over: Over,
        version: str = "",
    ) -> None:
        """`model` serves the request. `version` is the one that would, if the caller names none."""
        self.booked = Booked(request_id=request.id, caller_id=asked.id)
        self.metadata = metadata
        self.own = False
        self.judged = False  # what the engine says is passed on as it is
        self.stop_wanted = False  # the engine sees all of it
        self.reused_blocks = None  # nothing of ours is resumed
        self._asked = asked
        self._model = model
        self._deliver = deliver
        self._over = over
        self._version = asked.version or version
        self._wants_empty_final = asked.flag(wire.EMPTY_FINAL)
        # Offline work may be run anew after a failure, so nothing of it is delivered before it is over.
        self._held: list[Any] | None = [] if request.lane is Lane.OFFLINE else None
        self._end_id = asked.scalar("end_id", None)
        self._last: Any = None  # response with data
        self._final_came = False

    def request(self, dispatch: Dispatch, request_id: str) -> Any:
        """The caller's request as it came, under our id."""
        del dispatch  # the whole output is asked for at once
        return self._asked.for_engine(self._model, request_id)

    def receive(self, response: Any) -> int:
        """Pass it on under the caller's id; a final response without data only if the caller asked for such."""
        answer = response.infer_response
        answer.id = self.booked.caller_id
        self._final_came = wire.is_final(answer)
        tokens = wire.output_tokens(answer)
        if tokens:
            self._last = answer
        elif not self._wants_empty_final and not answer.outputs:
            return 0
        if self._held is None:
            self._deliver(response)
        else:
            self._held.append(response)
        return tokens

    def ended_by(self) -> EndReason | None:
        """The end id, where the caller named one and asked for ids; otherwise the driver goes by the counts."""
        ids = None if self._end_id is None or self._last is None else wire.output_values(self._last, "output_ids")
        return EndReason.END_ID if ids and ids[-1] == self._end_id else None

    def settled(self, event: Terminal, timeline: Timeline, *, over: bool) -> None:
        """Tell the caller, once there is nothing more to come."""
        del timeline
        failure = statuses.failed(event, self.booked)
        if not over or failure is not None:
            if self._held:
                self._held.clear()  # of an attempt that failed: the next one begins anew
            self._final_came = False
        if not over:
            return
        if failure is None:
            for response in self._held or ():
                self._deliver(response)
            if not self._final_came:  # stopped while it waited for a slot: Triton too answers with no tokens
                self._deliver(self._final_without_tokens())
        self._over(self.booked, failure)

    def refused(self, outcome: Reject | DeadLetter) -> None:
        """Tell the caller why."""
        self._over(self.booked, statuses.refused(outcome, self.booked))

    def _final_without_tokens(self) -> Any:
        return final_answer(self._asked, self._model, self._version, "" if "text_input" in self._asked.inputs else ())
