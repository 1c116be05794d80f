"""The upper edge for callers: ModelInfer and ModelStreamInfer of scheduled models, one Call per request.

On a caller's stream all requests run concurrently; each gets an upstream stream and an id of ours, and the caller's id
back on every response. The engine is never slowed by a slow reader: what it streams waits in a bounded outbox, so
that a slot is free when the engine says so and not when the caller has read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from sidecar.call import Call, Metadata
from sidecar.core.work import Lane, Work
from sidecar.driver.driver import Driver
from sidecar.errors import BadRequestError, EngineError, ModelRefusesError
from sidecar.frontend import statuses
from sidecar.frontend.caller_request import OURS, ScheduledModel, asked, given_by, tenant_of, work_of
from sidecar.frontend.held_bytes import HeldBytes
from sidecar.frontend.message_fields import FIELDS_MAX, too_many
from sidecar.frontend.models import Models
from sidecar.frontend.offline_call import sliced_call, token_call
from sidecar.frontend.outbox import Outbox, Unread
from sidecar.frontend.passthrough import UNREADABLE, Passthrough, StreamPassthrough, forwardable
from sidecar.frontend.relayed_call import Deliver, Over, WholeCall
from sidecar.frontend.rpc import refuse
from sidecar.frontend.schema import ModelSchema
from sidecar.frontend.statuses import Booked, CallerError
from sidecar.frontend.stop_requests import Stop, Stoppable, answers_to, is_stop
from sidecar.frontend.tensor_rules import asked_by, check_well_formed
from sidecar.frontend.unary_response import check_joinable, joined
from sidecar.settings.aliases import Aliases
from sidecar.telemetry.faults import Faults
from sidecar.telemetry.tracing import CURRENT, Tracing
from sidecar.token_call import TokenCall
from sidecar.triton import wire
from sidecar.triton.errors import REAL_STATUS

logger = logging.getLogger(__name__)
LARGE_REQUEST_BYTES = 4096  # tokenised in a thread: it would hold up the loop for 1 to 3 ms (measured)
TOO_MANY = f"the request has more than {FIELDS_MAX} inputs, outputs, parameters and raw contents"
STOPS_MAX = 16  # of one stream, at the same time
# What Triton's core refuses (a shape, a name) comes as a text without a status, and reads as INTERNAL.
DOUBTS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)


class Online:
    """Takes callers' requests for scheduled models to the driver; hands all others to the passthrough."""

    def __init__(
        self,
        driver: Driver,
        models: Iterable[ScheduledModel],
        passthrough: Passthrough,
        tracing: Tracing | None = None,
        aliases: Aliases | None = None,
        held: HeldBytes | None = None,
    ) -> None:
        self._driver = driver
        self._tracing = tracing
        self.models = Models(models, aliases or {})
        self._passthrough = passthrough
        self.held = held or HeldBytes()
        self.unread = Unread()
        self._stoppable = Stoppable()
        self._faults = Faults(logger)

    async def model_infer(self, raw: bytes, context: Any) -> Any:
        """ModelInfer: a message, or bytes as they came. A decoupled model's responses are joined into one."""
        if (request_id := too_many(raw)) is not None:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, asked_by(request_id) + TOO_MANY)
        try:
            request = wire.InferRequest.FromString(raw)
        except DecodeError:
            await refuse(context, *UNREADABLE)
        if request.model_name not in self.models:
            if why := self._passthrough.refused.get(request.model_name):
                await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, asked_by(request.id) + why)
            try:
                await self._passthrough.schemas.check_classes(request, request.model_name)
            except (BadRequestError, EngineError) as unserved:
                await refuse(context, unserved.code, asked_by(request.id) + str(unserved))
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
            begun = await self.begin(request, peer, context, found.append, over, True)
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
                self._driver.cancel(booked.work_id)
        if error is not None:
            await refuse(context, error.code, str(error), error.trailing)
        try:
            return joined([each.infer_response for each in found])
        except EngineError as unfit:
            await refuse(context, unfit.code, asked_by(found[0].infer_response.id) + str(unfit))

    async def model_stream_infer(self, requests: AsyncIterator[Any], context: Any) -> None:
        """ModelStreamInfer: a task reads the caller's requests, the outbox writes what each of them gets."""
        stream = _CallerStream(self, self._passthrough, context)
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(stream.read(requests, tasks), name=f"read {stream.peer}")
                await stream.outbox.finished()
                reader.cancel()
                stream.break_off()
        finally:  # the caller is gone, or all is answered; either way nothing of this stream goes on
            self.abandon(stream.open)
            stream.outbox.drop()
        if stream.status is not None:
            await refuse(context, stream.status.code, str(stream.status), stream.status.trailing)

    async def begin(
        self, request: Any, peer: str, context: Any, deliver: Deliver, over: Over, unary: bool = False
    ) -> Booked | Stop:
        """The request is with the scheduler, and `over` may already have been called; or a stop has been obeyed.

        Raises CallerError, also for a defect of ours: it concerns this request alone.
        """
        caller_id = request.id
        try:
            return await self._begin(request, peer, context, deliver, over, unary)
        except CallerError:
            raise
        except BadRequestError as error:
            raise CallerError(error.code, str(error), ran=isinstance(error, ModelRefusesError)) from None
        except EngineError as error:
            raise CallerError(error.code, asked_by(caller_id) + str(error)) from None
        except Exception as error:
            self._faults.log("a caller's request", error)
            raise statuses.internal(error, caller_id) from None

    async def _begin(
        self, request: Any, peer: str, context: Any, deliver: Deliver, over: Over, unary: bool
    ) -> Booked | Stop:
        model = self.models.probable(request)
        metadata = context.invocation_metadata() or ()
        over = self._doubting(model.name, over)
        schemas = self._passthrough.schemas
        await schemas.check(request, model.name)
        await schemas.check_classes(request, model.name)
        if is_stop(request):
            return self._stop(request, model, peer, metadata)
        arguments = (request, model, metadata, context.time_remaining(), await schemas.of(model.engine_model))
        if request.ByteSize() > LARGE_REQUEST_BYTES:
            work, tokens, model = await asyncio.to_thread(self._work, *arguments)
        else:
            work, tokens, model = self._work(*arguments)
        if unary:
            check_joinable(request)
        version = "" if (schema := await schemas.of(model.name)) is None else schema.version
        if tokens is not None:
            tokens = replace(tokens, metadata=forwardable(metadata))
            booked, call = sliced_call(request, work, tokens, model, deliver, over, version)
            self._arrive(peer, booked, work, call)
            return booked
        whole = WholeCall(request, work, forwardable(metadata), deliver, over, version)
        self._arrive(peer, whole.booked, work, whole)
        return whole.booked

    def _doubting(self, model: str, over: Over) -> Over:
        """`over`, and if the engine refuses what fitted the model's description, that is fetched anew."""

        def doubting(booked: Booked, error: CallerError | None) -> None:
            if error is not None and error.ran and error.code in DOUBTS:
                self._passthrough.schemas.doubt(model)
            over(booked, error)

        return doubting

    def _arrive(self, peer: str, booked: Booked, work: Work, call: Call) -> None:
        if self._tracing is not None and (trace := CURRENT.get()) is not None:
            self._tracing.adopt(work.id, trace)
        self._stoppable.add(booked, peer, work)  # before it arrives, which may end it at once
        try:
            self._driver.arrive(work, call)
        except BaseException:
            self._stoppable.discard(booked)
            raise

    def _work(
        self,
        request: Any,
        model: ScheduledModel,
        metadata: Metadata,
        remaining_s: float | None,
        engine: ModelSchema | None,
    ) -> tuple[Work, TokenCall | None, ScheduledModel]:
        """The request as work, by token ids if it can run in slices, and the model that an alias led it to."""
        check_well_formed(request, OURS)
        given = given_by(request, metadata)
        lengths, now_s = model.lengths(request, None if engine is None else engine.beams_max), self._driver.now_s
        model = self.models.final(request, model, lengths, tenant_of(request, given), partial(asked, request, given))
        work = work_of(
            request,
            model,
            lengths,
            given,
            work_id=self._driver.mint("o"),
            arrived_s=now_s,
            deadline_s=inf if remaining_s is None else now_s + remaining_s,
        )
        excludes_input = engine is not None and engine.excludes_input
        tokens = token_call(request, model, excludes_input=excludes_input) if work.lane is Lane.OFFLINE else None
        return work if tokens is None else replace(work, resumable=True, splits_prompt=True), tokens, model

    def _stop(self, request: Any, model: ScheduledModel, peer: str, metadata: Metadata) -> Stop:
        caller_id, engine_models = request.id, self.models.engine_models(request.model_name)
        for work_id in self._stoppable.named(
            caller_id, peer, tenant_of(request, given_by(request, metadata)), engine_models
        ):
            self._driver.cancel(work_id)
        request.model_name = model.name
        for name in OURS & request.parameters.keys():
            del request.parameters[name]  # heard here; Triton would not take them in every type
        request.id = self._driver.mint("s")
        return Stop(request=request, caller_id=caller_id, model=model.name)

    async def answers_to(self, stop: Stop, context: Any) -> list[Any]:
        """The engine's answers to a stop that has been obeyed here. Raises CallerError."""
        return await answers_to(stop, self._passthrough, forwardable(context.invocation_metadata() or ()))

    def abandon(self, open_requests: Iterable[Booked]) -> None:
        """Nobody waits for these any more."""
        for booked in tuple(open_requests):
            self._driver.cancel(booked.work_id)

    def forget(self, booked: Booked) -> None:
        """This request can no longer be stopped."""
        self._stoppable.discard(booked)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Name:
    """How a caller named a request, before the sidecar gives it other names."""

    id: str
    model: str
    version: str


class _CallerStream:
    """One caller's ModelStreamInfer: its open requests and its outbox."""

    def __init__(self, online: Online, passthrough: Passthrough, context: Any) -> None:
        self.outbox = Outbox(context, online.unread)
        self.open: set[Booked] = set()
        self._stops: set[asyncio.Task[None]] = set()  # whose answers are awaited
        self._stops_max = asyncio.Semaphore(STOPS_MAX)
        self.status: CallerError | None = None
        self._online = online
        self._passthrough = passthrough
        self.peer = context.peer()  # once: asked after the RPC is over, grpc.aio crashes the process
        self._context = context
        self._others: StreamPassthrough | None = None
        self._passing_on: asyncio.Task[None] | None = None
        self._half_closed = False
        self._unreadable = False
        metadata = dict(context.invocation_metadata() or ())
        self._real_status = metadata.get(REAL_STATUS) == "true"

    async def read(self, requests: AsyncIterator[Any], tasks: asyncio.TaskGroup) -> None:
        """Every request of the caller has been begun, or answered by its error.

        After a message that cannot be parsed none is read any more, and what came before it is served: as in Triton,
        which then ends the stream with OK. Here it ends with the status that Triton has for a unary call.
        """
        async for raw in requests:
            if (request_id := too_many(raw)) is not None:
                error = CallerError(grpc.StatusCode.INVALID_ARGUMENT, asked_by(request_id) + TOO_MANY)
                self._answer_error(_Name(id=request_id, model="", version=""), error)
                await self.outbox.room()
                continue
            try:
                request = wire.InferRequest.FromString(raw)
            except DecodeError:
                self._unreadable = True
                break
            if request.model_name in self._online.models:
                await self._begin(request, len(raw), tasks)
            elif why := self._passthrough.refused.get(request.model_name):
                name = _Name(id=request.id, model=request.model_name, version=request.model_version)
                error = CallerError(grpc.StatusCode.FAILED_PRECONDITION, asked_by(request.id) + why)
                self._answer_error(name, error)
            else:
                await self._pass_on(request, raw, tasks)
            await self.outbox.room()
        self._half_closed = True
        if self._others is not None:
            await self._others.half_close()
        self._close_if_done()

    async def _begin(self, request: Any, size: int, tasks: asyncio.TaskGroup) -> None:
        name = _Name(id=request.id, model=request.model_name, version=request.model_version)
        ended = False
        held = self._online.held

        def over(booked: Booked, error: CallerError | None) -> None:
            nonlocal ended
            ended = True
            held.give_back(size)
            self._online.forget(booked)
            self.open.discard(booked)
            if error is not None:
                self._answer_error(name, error)
            self._close_if_done()

        try:
            held.take(size)
            try:
                begun = await self._online.begin(request, self.peer, self._context, self._deliver, over)
            except BaseException:  # also when cancelled: nothing of it is with the scheduler
                if not ended:
                    held.give_back(size)
                raise
        except CallerError as error:
            self._answer_error(name, error)
            return
        if isinstance(begun, Stop):
            held.give_back(size)
            await self._stops_max.acquire()
            task = tasks.create_task(self._answer_stop(begun, name), name=f"stop for {self.peer}")
            self._stops.add(task)
            task.add_done_callback(self._stops.discard)
        elif not ended:
            self.open.add(begun)

    def _deliver(self, response: Any) -> None:
        self.outbox.put(response.SerializeToString())
        if self.status is None and (overflow := self.outbox.overflow()):
            self._end(CallerError(grpc.StatusCode.RESOURCE_EXHAUSTED, overflow))
            self.outbox.drop()
            self._online.abandon(self.open)

    def _answer_error(self, name: _Name, error: CallerError) -> None:
        if self._real_status and error.ends_stream:
            self._end(error)
            return
        answer = wire.StreamResponse(error_message=str(error))
        answer.infer_response.id = name.id
        if error.ran:  # then Triton says also whose it was, and that no more follows
            answer.infer_response.model_name = name.model
            answer.infer_response.model_version = name.version
            answer.infer_response.parameters[wire.FINAL].bool_param = True
        self.outbox.put(answer.SerializeToString())

    async def _answer_stop(self, stop: Stop, name: _Name) -> None:
        """A task of its own: while the engine statuses, further requests are read."""
        try:
            for answer in await self._online.answers_to(stop, self._context):
                self.outbox.put(answer.SerializeToString())
        except CallerError as error:
            self._answer_error(name, error)
        finally:
            self._stops_max.release()
            self._stops.discard(asyncio.current_task())
            self._close_if_done()

    def break_off(self) -> None:
        """Nobody waits for answers any more. Triton is told to stop those of models that are not scheduled."""
        for task in (*self._stops, *filter(None, (self._passing_on,))):
            task.cancel()

    async def _pass_on(self, request: Any, raw: bytes, tasks: asyncio.TaskGroup) -> None:
        """Requests of models that are not scheduled share one upstream stream, which keeps Triton's order rules."""
        try:
            await self._passthrough.schemas.check_classes(request, request.model_name)
        except (BadRequestError, EngineError) as error:
            name = _Name(id=request.id, model=request.model_name, version=request.model_version)
            self._answer_error(name, CallerError(error.code, asked_by(request.id) + str(error)))
            return
        others = self._others
        if others is None:
            try:
                others = self._others = await self._passthrough.stream(self._context, self.outbox)
            except EngineError as error:
                self._end(CallerError(error.code, str(error)))
                return
            self._passing_on = tasks.create_task(self._pump(others), name=f"pass on {self.peer}")
        await others.write(raw)

    async def _pump(self, others: StreamPassthrough) -> None:
        error = await others.pump()
        self._others = None
        if error is not None:
            self._end(CallerError(error.code, str(error)))
        self._close_if_done()

    def _end(self, status: CallerError) -> None:
        """The stream ends with this status once what was put before it is written."""
        self.status = self.status or status
        self.outbox.close()

    def _close_if_done(self) -> None:
        if self._half_closed and not self.open and not self._stops and self._others is None:
            if self._unreadable:
                self._end(CallerError(*UNREADABLE))
            self.outbox.close()
