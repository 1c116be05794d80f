"""A caller's stop: a request with the input `stop` and the id of what it stops, as TensorRT-LLM's models take it.

What a stop reaches is cancelled first (`Stoppable` in `service.py`). The engine knows our ids only, so it gets the stop
under an id that nobody has. Its answer is the caller's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc

from sidecar.call import Metadata
from sidecar.errors import EngineError, ModelRefusesError, StreamBrokenError
from sidecar.frontend.caller_request import CallerRequest, asked_by, check_datatype, check_well_formed, refusal
from sidecar.frontend.passthrough import Passthrough
from sidecar.frontend.statuses import CallerError
from sidecar.triton import wire
from sidecar.triton.client import responses

ANSWER_TIMEOUT_S = 5.0  # an engine that lives answers within milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A stop that has been carried out here, and whose answer the engine has yet to give."""

    request: Any  # under an id that nobody has
    caller_id: str
    model: str


def is_stop(asked: CallerRequest) -> bool:
    """True if a request stops another. Raises BadRequestError if it says so in a malformed way."""
    stop = asked.inputs.get("stop")
    if stop is None:
        return False
    if stop.shared_bytes is not None:
        raise refusal(asked, "input 'stop' must not lie in shared memory: it is obeyed here, not in the engine alone")
    check_well_formed(asked)
    check_datatype(asked, stop, ("BOOL",))
    stops = bool(asked.scalar("stop", False))
    if stops and not asked.id:
        raise ModelRefusesError(f"{asked_by('')}a stop request needs the id of the request to stop")
    return stops


async def answers_to(stop: Stop, passthrough: Passthrough, metadata: Metadata) -> list[Any]:
    """Return what the engine answers to a stop, as ModelStreamInferResponses. Raises CallerError."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            engine = await passthrough.living(stop.model)
            found = await responses(engine.open(metadata), stop.request)
    except EngineError as error:
        minted = asked_by(stop.request.id)
        raise CallerError(error.code, str(error).replace(minted, asked_by(stop.caller_id)), ran=True) from None
    except (StreamBrokenError, TimeoutError):
        text = f"{asked_by(stop.caller_id)}what it named is being stopped, but the engine did not answer"
        raise CallerError(grpc.StatusCode.UNAVAILABLE, text) from None
    wrapped = []
    for each in found:
        answer = wire.StreamResponse(infer_response=each)
        answer.infer_response.id = stop.caller_id
        wrapped.append(answer)
    return wrapped
