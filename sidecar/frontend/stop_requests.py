"""A caller's stop: a request with the input `stop` and the id of what it stops, as TensorRT-LLM's models take it.

A stop reaches what the same tenant runs under that id on the same engine's model, from whichever connection; ids that
several connections happen to share are told apart first: what runs on the connection of the stop is stopped alone.
The engine, which knows our ids only, is given the stop under an id that nobody has, and its answer is the caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from sidecar.call import Metadata
from sidecar.core.work import Work
from sidecar.errors import EngineError, ModelRefusesError, StreamBrokenError
from sidecar.frontend.caller_request import OURS, refusal
from sidecar.frontend.passthrough import Passthrough
from sidecar.frontend.statuses import Booked, CallerError
from sidecar.frontend.tensor_rules import SHARED_MEMORY, asked_by, check_well_formed
from sidecar.triton import wire
from sidecar.triton.client import responses

ANSWER_TIMEOUT_S = 5.0  # an engine that lives answers within milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A stop that has been carried out here, and whose answer the engine has yet to give."""

    request: Any  # under an id that nobody has
    caller_id: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owner:
    peer: str
    tenant: str
    engine_model: str


class Stoppable:
    """The callers' requests that are not over, by the ids that the callers gave them."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[str, _Owner]] = {}  # caller's id → work id → whose it is

    def add(self, booked: Booked, peer: str, work: Work) -> None:
        """This request may be stopped from now on. One without an id cannot be named by a stop."""
        if booked.caller_id:
            owner = _Owner(peer=peer, tenant=work.tenant, engine_model=work.model)
            self._owners.setdefault(booked.caller_id, {})[work.id] = owner

    def discard(self, booked: Booked) -> None:
        """This request is over."""
        owners = self._owners.get(booked.caller_id, {})
        owners.pop(booked.work_id, None)
        if not owners:
            self._owners.pop(booked.caller_id, None)

    def named(self, caller_id: str, peer: str, tenant: str, engine_models: Sequence[str]) -> list[str]:
        """The ids of the works that a stop of this caller is meant for."""
        found = {
            work_id: owner
            for work_id, owner in self._owners.get(caller_id, {}).items()
            if owner.engine_model in engine_models and (owner.peer == peer or owner.tenant == tenant)
        }
        return [work_id for work_id, owner in found.items() if owner.peer == peer] or list(found)


def is_stop(request: Any) -> bool:
    """True if `request` stops another. Raises BadRequestError if it says so in a malformed way."""
    stop = next((tensor for tensor in request.inputs if tensor.name == "stop"), None)
    if stop is None:
        return False
    if SHARED_MEMORY in stop.parameters:
        raise refusal(request, "input 'stop' must not lie in shared memory: it is obeyed here, not in the engine alone")
    check_well_formed(request, OURS)
    if stop.datatype != "BOOL":  # where nobody tells the ModelConfig, nobody has looked at it yet
        model = f"model '{request.model_name}' expects 'BOOL'"
        raise refusal(request, f"inference input 'stop' data-type is '{stop.datatype}', but {model}")
    stops = bool(wire.scalar(request, "stop", False))
    if stops and not request.id:
        raise ModelRefusesError(f"{asked_by('')}a stop request needs the id of the request to stop")
    return stops


async def answers_to(stop: Stop, passthrough: Passthrough, metadata: Metadata) -> list[Any]:
    """What the engine answers to a stop, as ModelStreamInferResponses. Raises CallerError."""
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
