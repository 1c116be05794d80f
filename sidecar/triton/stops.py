"""Tells one engine to stop requests. Many at once share a stream: a yield of 64 rows is 64 writes, not 64 streams."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from sidecar.errors import EngineError, StreamBrokenError
from sidecar.triton import wire
from sidecar.triton.errors import raise_if_error, translated_errors

IDLE_S = 0.5  # so long a line without work stays open; a server that shuts down waits for every open stream


class StopLine:
    """One stream for stops alone. It ends by itself when it has had none for a while.

    The engine answers in any order, by the id of the request; so of each id only one stop is under way at a time.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._writing = asyncio.Lock()  # grpc.aio takes one write at a time
        self._retired = False
        self._idle: asyncio.TimerHandle | None = None
        self._reader = asyncio.create_task(self._read(), name="answers to stops")

    @property
    def usable(self) -> bool:
        """False once the stream has ended, or left a stop without an answer: the next stop wants another line."""
        return not (self._retired or self._reader.done())

    async def stop(self, request: Any, timeout_s: float, patience_s: float = 0.0) -> None:
        """The engine has answered this stop request. It is sent after `patience_s`, unless the stream ends before.

        Raises EngineError if it refused, StreamBrokenError if it did not answer in time.
        """
        request.parameters[wire.EMPTY_FINAL].bool_param = True
        loop = asyncio.get_running_loop()
        answered = self._waiting[request.id] = loop.create_future()
        if self._idle is not None:
            self._idle.cancel()
        try:
            async with asyncio.timeout(timeout_s):
                if patience_s:
                    await asyncio.wait([answered], timeout=patience_s)
                if not answered.done():
                    await self._write(request)
                await answered
        except TimeoutError:
            self._retired = True
            raise StreamBrokenError(f"DEADLINE_EXCEEDED: no answer to a stop within {timeout_s:.1f} s") from None
        finally:
            self._waiting.pop(request.id, None)
            if not self._waiting:
                self._idle = loop.call_later(0.0 if self._retired else IDLE_S, self._retire)

    async def close(self) -> None:
        """The stream is over; who waits for an answer hears that it broke."""
        self._retire()
        await asyncio.wait([self._reader])

    def _retire(self) -> None:
        self._retired = True
        self._call.cancel()  # no stop is undone by it: those that matter were answered

    async def _write(self, request: Any) -> None:
        async with self._writing:
            try:
                await self._call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass  # the stream has broken: the reader says why
            except asyncio.CancelledError:  # grpc.aio: also when the stream was cancelled
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise

    async def _read(self) -> None:
        error: EngineError | StreamBrokenError = StreamBrokenError("the stream of stops ended")
        try:
            with translated_errors(self._call):
                while (response := await self._call.read()) is not grpc.aio.EOF:
                    answered = None if response is None else self._waiting.get(response.infer_response.id)
                    if answered is None:
                        raise_if_error(response)  # nobody waits for it, or it cannot be told who does
                    elif not answered.done():
                        _settle(answered, response)
        except (EngineError, StreamBrokenError) as broken:
            error = broken
        for answered in self._waiting.values():
            if not answered.done():
                answered.set_exception(error)


def _settle(answered: asyncio.Future[None], response: Any) -> None:
    try:
        raise_if_error(response)
    except EngineError as error:
        answered.set_exception(error)
    else:
        answered.set_result(None)
