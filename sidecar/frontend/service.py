"""Callers' requests for scheduled models, one Call each: by ModelInfer here, by ModelStreamInfer in `caller_stream.py`.

The engine is never slowed by a slow reader, so that a slot is free when the engine says so and not when the caller has
read. Each request gets an upstream stream and an id of ours, and the caller's id back on every response.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from sidecar.call import Call, Metadata
from sidecar.core.request import Lane, Request
from sidecar.driver.driver import Driver
from sidecar.errors import BadRequestError, EngineError, ModelRefusesError
from sidecar.frontend import statuses
from sidecar.frontend.access import Access
from sidecar.frontend.caller_request import CallerRequest, asked_by, check_well_formed, parse
from sidecar.frontend.models import Models, ScheduledModel, check_joinable, given_by, request_of, stated, tenant_of
from sidecar.frontend.offline_call import sliced_call, token_call
from sidecar.frontend.outbox import Unread
from sidecar.frontend.passthrough import UNREADABLE, Passthrough
from sidecar.frontend.relayed_call import Deliver, Over, RelayedCall
from sidecar.frontend.rpc import HeldBytes, forwardable, refuse
from sidecar.frontend.schemas import ModelSchema
from sidecar.frontend.statuses import Booked, CallerError
from sidecar.frontend.stop_requests import Stop, answers_to, is_stop
from sidecar.frontend.unary_response import joined
from sidecar.settings.aliases import Aliases
from sidecar.telemetry.faults import FaultLog
from sidecar.telemetry.tracing import CURRENT, Tracing
from sidecar.token_call import TokenCall
from sidecar.triton import wire

logger = logging.getLogger(__name__)
LARGE_REQUEST_BYTES = 4096  # tokenised in a thread: it would hold up the loop for 1 to 3 ms (measured)
PARTS_MAX = 4096  # of a request; a large model has some dozens
TOO_MANY = f"the request has more than {PARTS_MAX} inputs, outputs, parameters and raw contents"
# What Triton's core refuses (a shape, a name) comes as a text without a status, and reads as INTERNAL.
DOUBTS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owner:
    peer: str
    tenant: str
    engine_model: str


class Stoppable:
    """The callers' requests that are not over, by the ids that the callers gave them.

    A stop reaches what the same tenant runs under an id on the same engine's model, from whichever connection. Several
    connections may happen to share an id: then what runs on the connection of the stop is stopped alone.
    """

    def __init__(self) -> None:
        self._owners: dict[str, dict[str, _Owner]] = {}  # caller's id → request id → whose it is

    def add(self, booked: Booked, peer: str, request: Request) -> None:
        """This request may be stopped from now on. One without an id cannot be named by a stop."""
        if booked.caller_id:
            owner = _Owner(peer=peer, tenant=request.tenant, engine_model=request.model)
            self._owners.setdefault(booked.caller_id, {})[request.id] = owner

    def discard(self, booked: Booked) -> None:
        """This request is over."""
        owners = self._owners.get(booked.caller_id, {})
        owners.pop(booked.request_id, None)
        if not owners:
            self._owners.pop(booked.caller_id, None)

    def named(
        self, caller_id: str, peer: str, tenant: str, engine_models: Sequence[str], *, strict: bool = False
    ) -> list[str]:
        """The ids of the requests that a stop of this caller is meant for.

        `strict`: callers of several tenants may share a connection, as those of a proxy do, and must not meet.
        """
        found = {
            request_id: owner
            for request_id, owner in self._owners.get(caller_id, {}).items()
            if owner.engine_model in engine_models and (owner.tenant == tenant or (owner.peer == peer and not strict))
        }
        return [request_id for request_id, owner in found.items() if owner.peer == peer] or list(found)


class OnlineService:
    """Takes callers' requests for scheduled models to the driver; hands all others to the passthrough."""

    def __init__(
        self,
        driver: Driver,
        models: Iterable[ScheduledModel],
        passthrough: Passthrough,
        tracing: Tracing | None = None,
        aliases: Aliases | None = None,
        held: HeldBytes | None = None,
        access: Access | None = None,
    ) -> None:
        self._driver = driver
        self._tracing = tracing
        self.models = Models(models, aliases or {})
        self._passthrough = passthrough
        self.held = held or HeldBytes()
        self.access = access
        self.unread = Unread()
        self._stoppable = Stoppable()
        self._faults = FaultLog(logger)

    async def model_infer(self, raw: bytes, context: Any) -> Any:
        """ModelInfer: a message, or bytes as they came. A decoupled model's responses are joined into one."""
        if (request_id := wire.id_if_beyond(PARTS_MAX, raw)) is not None:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, asked_by(request_id) + TOO_MANY)
        try:
            asked = parse(wire.InferRequest.FromString(raw), len(raw))
        except DecodeError:
            await refuse(context, *UNREADABLE)
        if asked.model not in self.models:
            try:
                await self.check_unscheduled(asked)
            except CallerError as unserved:
                await refuse(context, unserved.code, str(unserved), unserved.trailing)
            return await self._passthrough.unary("ModelInfer", raw, context)
        peer = context.peer()  # once: asked after the RPC is over, grpc.aio crashes the process (measured, 1.85.1)
        found: list[Any] = []
        done: asyncio.Future[CallerError | None] = asyncio.get_running_loop().create_future()

        def over(booked: Booked, error: CallerError | None) -> None:
            self.forget(booked)
            if not done.done():
                done.set_result(error)

        booked = None
        try:
            begun = await self.begin(asked, peer, context, found.append, over, True)
            if isinstance(begun, Stop):
                found += await self.answers_to(begun, context)
                error = None
            else:
                booked = begun
                error = await done
        except CallerError as refusal:
            error = refusal
        finally:  # also when the caller is gone
            if booked is not None:
                self._driver.cancel(booked.request_id)
        if error is not None:
            await refuse(context, error.code, str(error), error.trailing)
        try:
            return joined([each.infer_response for each in found])
        except EngineError as unfit:
            await refuse(context, unfit.code, asked_by(found[0].infer_response.id) + str(unfit))

    async def check_unscheduled(self, asked: CallerRequest) -> None:
        """Raise CallerError unless a request for a model that is not scheduled may be passed through."""
        if self.access is not None:
            self.access.check(asked)
        if why := self._passthrough.refused.get(asked.model):
            raise CallerError(grpc.StatusCode.FAILED_PRECONDITION, asked_by(asked.id) + why)
        try:
            await self._passthrough.schemas.check_classes(asked, asked.model)
        except (BadRequestError, EngineError) as error:
            raise CallerError(error.code, asked_by(asked.id) + str(error)) from None

    async def begin(
        self, asked: CallerRequest, peer: str, context: Any, deliver: Deliver, over: Over, unary: bool = False
    ) -> Booked | Stop:
        """The request is with the scheduler, and `over` may already have been called; or a stop has been obeyed.

        Raises CallerError, also for a defect of ours: it concerns this request alone.
        """
        try:
            return await self._begin(asked, peer, context, deliver, over, unary)
        except CallerError:
            raise
        except BadRequestError as error:
            raise CallerError(error.code, str(error), ran=isinstance(error, ModelRefusesError)) from None
        except EngineError as error:
            raise CallerError(error.code, asked_by(asked.id) + str(error)) from None
        except Exception as error:
            self._faults.log("a caller's request", error)
            raise statuses.internal(error, asked.id) from None

    async def _begin(
        self, asked: CallerRequest, peer: str, context: Any, deliver: Deliver, over: Over, unary: bool
    ) -> Booked | Stop:
        model = self.models.probable(asked)
        metadata = context.invocation_metadata() or ()
        over = self._doubting(model.name, over)
        schemas = self._passthrough.schemas
        await schemas.check(asked, model.name)
        await schemas.check_classes(asked, model.name)
        if "stop" in asked.inputs and is_stop(asked):
            return self._stop(asked, model, peer, metadata)
        if self.access is not None:
            self.access.check(asked)
        arguments = (asked, model, metadata, context.time_remaining(), await schemas.of(model.engine_model))
        if asked.size > LARGE_REQUEST_BYTES:
            request, tokens, model = await asyncio.to_thread(self._request, *arguments)
        else:
            request, tokens, model = self._request(*arguments)
        if unary:
            check_joinable(asked)
        version = "" if (schema := await schemas.of(model.name)) is None else schema.version
        if tokens is not None:
            tokens = replace(tokens, metadata=forwardable(metadata))
            booked, call = sliced_call(asked, request, tokens, model, deliver, over, version)
            self._arrive(peer, booked, request, call)
            return booked
        whole = RelayedCall(asked, model.name, request, forwardable(metadata), deliver, over, version)
        self._arrive(peer, whole.booked, request, whole)
        return whole.booked

    def _doubting(self, model: str, over: Over) -> Over:
        """`over`, and if the engine refuses what fitted the model's description, that is fetched anew."""

        def doubting(booked: Booked, error: CallerError | None) -> None:
            if error is not None and error.ran and error.code in DOUBTS:
                self._passthrough.schemas.doubt(model)
            over(booked, error)

        return doubting

    def _arrive(self, peer: str, booked: Booked, request: Request, call: Call) -> None:
        if self._tracing is not None and (trace := CURRENT.get()) is not None:
            self._tracing.adopt(request.id, trace)
        if self.access is not None:
            self.access.book(request, booked.caller_id)
        self._stoppable.add(booked, peer, request)  # before it arrives, which may end it at once
        try:
            self._driver.arrive(request, call)
        except BaseException:
            self._stoppable.discard(booked)
            if self.access is not None:
                self.access.forget(request.id)
            raise

    def _request(
        self,
        asked: CallerRequest,
        model: ScheduledModel,
        metadata: Metadata,
        remaining_s: float | None,
        engine: ModelSchema | None,
    ) -> tuple[Request, TokenCall | None, ScheduledModel]:
        """The request as the scheduler sees it, by token ids if it can run in slices, and the model that an alias led
        it to."""
        check_well_formed(asked)
        given = self._given(asked, metadata)
        lengths, now_s = model.lengths(asked, None if engine is None else engine.beams_max), self._driver.now_s
        model = self.models.final(asked, model, lengths, tenant_of(asked, given), partial(stated, asked, given))
        request = request_of(
            asked,
            model,
            lengths,
            given,
            request_id=self._driver.mint("o"),
            arrived_s=now_s,
            deadline_s=inf if remaining_s is None else now_s + remaining_s,
        )
        excludes_input = engine is not None and engine.excludes_input
        tokens = token_call(asked, model, excludes_input=excludes_input) if request.lane is Lane.OFFLINE else None
        return request if tokens is None else replace(request, resumable=True, splits_prompt=True), tokens, model

    def _given(self, asked: CallerRequest, metadata: Metadata) -> Mapping[str, str]:
        """What the metadata says, as far as the caller's key grants it."""
        given = given_by(asked, metadata)
        return given if self.access is None else self.access.narrowed(asked, given)

    def _stop(self, asked: CallerRequest, model: ScheduledModel, peer: str, metadata: Metadata) -> Stop:
        tenant, engine_models = tenant_of(asked, self._given(asked, metadata)), self.models.engine_models(asked.model)
        strict = self.access is not None
        for request_id in self._stoppable.named(asked.id, peer, tenant, engine_models, strict=strict):
            self._driver.cancel(request_id)
        request = asked.for_engine(model.name, self._driver.mint("s"))
        return Stop(request=request, caller_id=asked.id, model=model.name)

    async def answers_to(self, stop: Stop, context: Any) -> list[Any]:
        """The engine's answers to a stop that has been obeyed here. Raises CallerError."""
        return await answers_to(stop, self._passthrough, forwardable(context.invocation_metadata() or ()))

    def abandon(self, open_requests: Iterable[Booked]) -> None:
        """Nobody waits for these any more."""
        for booked in tuple(open_requests):
            self._driver.cancel(booked.request_id)

    def forget(self, booked: Booked) -> None:
        """This request can no longer be stopped."""
        self._stoppable.discard(booked)
