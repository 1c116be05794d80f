"""One caller's ModelStreamInfer: its requests run concurrently, and what each of them gets is written in order.

What an engine streams waits in a bounded outbox. Requests of models that are not scheduled share one stream to Triton.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from sidecar.errors import EngineError
from sidecar.frontend.caller_request import CallerRequest, asked_by, parse
from sidecar.frontend.outbox import Outbox
from sidecar.frontend.passthrough import UNREADABLE, Passthrough, StreamPassthrough
from sidecar.frontend.rpc import refuse
from sidecar.frontend.service import PARTS_MAX, TOO_MANY, OnlineService
from sidecar.frontend.statuses import Booked, CallerError
from sidecar.frontend.stop_requests import Stop
from sidecar.triton import wire
from sidecar.triton.errors import REAL_STATUS

STOPS_MAX = 16  # of one stream, at the same time


def stream_handler(online: OnlineService, passthrough: Passthrough) -> Callable[[Any, Any], Awaitable[None]]:
    """Return the handler of ModelStreamInfer: bytes in and bytes out."""

    async def model_stream_infer(requests: AsyncIterator[Any], context: Any) -> None:
        """A task reads the caller's requests; the outbox writes what each of them gets."""
        stream = CallerStream(online, passthrough, context)
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(stream.read(requests, tasks), name=f"read {stream.peer}")
                await stream.outbox.finished()
                reader.cancel()
                stream.break_off()
        finally:  # the caller is gone, or all is answered; either way nothing of this stream goes on
            online.abandon(stream.open)
            stream.outbox.drop()
        if stream.status is not None:
            await refuse(context, stream.status.code, str(stream.status), stream.status.trailing)

    return model_stream_infer


class CallerStream:
    """One caller's ModelStreamInfer: its open requests and its outbox."""

    def __init__(self, online: OnlineService, passthrough: Passthrough, context: Any) -> None:
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
            await self._take(raw, tasks)
            del raw  # the next message may be hours away, and this one has 64 MiB
            if self._unreadable:
                break
            await self.outbox.room()
        self._half_closed = True
        if self._others is not None:
            await self._others.half_close()
        self._close_if_done()

    async def _take(self, raw: bytes, tasks: asyncio.TaskGroup) -> None:
        """One request has been begun, or answered by its error."""
        if (request_id := wire.id_if_beyond(PARTS_MAX, raw)) is not None:
            error = CallerError(grpc.StatusCode.INVALID_ARGUMENT, asked_by(request_id) + TOO_MANY)
            self._answer_error(parse(wire.InferRequest(id=request_id)), error)
            return
        try:
            asked = parse(wire.InferRequest.FromString(raw), len(raw))
        except DecodeError:
            self._unreadable = True
            return
        if asked.model in self._online.models:
            await self._begin(asked, len(raw), tasks)
        else:
            await self._pass_on(asked, raw, tasks)

    async def _begin(self, asked: CallerRequest, size: int, tasks: asyncio.TaskGroup) -> None:
        ended = False
        held = self._online.held

        def over(booked: Booked, error: CallerError | None) -> None:
            nonlocal ended
            ended = True
            held.give_back(size)
            self._online.forget(booked)
            self.open.discard(booked)
            if error is not None:
                self._answer_error(asked, error)
            self._close_if_done()

        try:
            held.take(size)
            try:
                begun = await self._online.begin(asked, self.peer, self._context, self._deliver, over)
            except BaseException:  # also when cancelled: nothing of it is with the scheduler
                if not ended:
                    held.give_back(size)
                raise
        except CallerError as error:
            self._answer_error(asked, error)
            return
        if isinstance(begun, Stop):
            held.give_back(size)
            await self._stops_max.acquire()
            task = tasks.create_task(self._answer_stop(begun, asked), name=f"stop for {self.peer}")
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

    def _answer_error(self, asked: CallerRequest, error: CallerError) -> None:
        if self._real_status and error.ends_stream:
            self._end(error)
            return
        answer = wire.StreamResponse(error_message=str(error))
        answer.infer_response.id = asked.id
        if error.ran:  # then Triton says also whose it was, and that no more follows
            answer.infer_response.model_name = asked.model
            answer.infer_response.model_version = asked.version
            answer.infer_response.parameters[wire.FINAL].bool_param = True
        self.outbox.put(answer.SerializeToString())

    async def _answer_stop(self, stop: Stop, asked: CallerRequest) -> None:
        """A task of its own: while the engine answers, further requests are read."""
        try:
            for answer in await self._online.answers_to(stop, self._context):
                self.outbox.put(answer.SerializeToString())
        except CallerError as error:
            self._answer_error(asked, error)
        finally:
            self._stops_max.release()
            self._stops.discard(asyncio.current_task())
            self._close_if_done()

    def break_off(self) -> None:
        """Nobody waits for answers any more. Triton is told to stop those of models that are not scheduled."""
        for task in (*self._stops, *filter(None, (self._passing_on,))):
            task.cancel()

    async def _pass_on(self, asked: CallerRequest, raw: bytes, tasks: asyncio.TaskGroup) -> None:
        """Requests of models that are not scheduled share one upstream stream, which keeps Triton's order rules."""
        try:
            await self._online.check_unscheduled(asked)
        except CallerError as error:
            self._answer_error(asked, error)
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
        """The stream ends with this status once what was put before it is written.

        Its traceback leads to the request and back to here: a circle would keep the request until the next collection.
        """
        status.__context__ = None
        self.status = self.status or status.with_traceback(None)
        self.outbox.close()

    def _close_if_done(self) -> None:
        if self._half_closed and not self.open and not self._stops and self._others is None:
            if self._unreadable:
                self._end(CallerError(*UNREADABLE))
            self.outbox.close()
