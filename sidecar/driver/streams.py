"""The streams of dispatches: what an engine answers reaches the call, and whoever is to stop is told to.

Whatever an engine answers stays with its dispatch: bytes that are no message, tensors that do not fit, anything after
the final response. Nothing of such a dispatch counts then, and the engine is told to stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

import grpc

from sidecar.call import TRACEPARENT, Metadata, Tracer
from sidecar.driver.containment import Containment
from sidecar.driver.dispatches import Alive, Dispatched
from sidecar.driver.verdicts import fault_of
from sidecar.driver.watchdog import Watchdog
from sidecar.errors import EngineError, StreamBrokenError
from sidecar.triton import wire
from sidecar.triton.client import EngineClient, send
from sidecar.triton.errors import raise_if_error, translated_errors

STOP_RETRY_S = 0.1  # a stop may overtake its request inside Triton and find nobody: it is said again, ever more rarely


class StreamListener(Protocol):
    """Whom the streams tell."""

    def progress(self, alive: Alive, running: Dispatched, tokens: int) -> None: ...
    def final(self, alive: Alive, running: Dispatched) -> None: ...
    def stop(self, alive: Alive) -> None: ...
    def broke(self, engine: str) -> None: ...


class Streams:
    """Runs the streams of one driver's dispatches."""

    def __init__(
        self,
        driver: StreamListener,
        engines: Mapping[str, EngineClient],
        contained: Containment,
        watchdog: Watchdog,
        tracer: Tracer | None,
        stop_timeout_s: float,
    ) -> None:
        self._driver = driver
        self._engines = engines
        self._contained = contained
        self._watchdog = watchdog
        self._tracer = tracer
        self._stop_timeout_s = stop_timeout_s

    async def relay(self, alive: Alive, running: Dispatched) -> None:
        """Everything that the engine answers has reached the call. What went wrong is kept in `running`."""
        try:
            if running.broken_off:
                return
            request = alive.call.request(running.dispatch, running.request_id)
            running.patience_s = self._watchdog.patience_s(running.dispatch, request)
            stream = running.stream = self._engines[running.dispatch.engine].open(
                self._metadata(alive), own=alive.call.own
            )
        except Exception as error:  # of this request alone: its values, its metadata
            running.fault, running.confirmed = fault_of(error, running, self._contained), True
            return
        try:
            with translated_errors(stream):
                await send(stream, request)
                while (response := await stream.read()) is not grpc.aio.EOF:  # the hot path: once per token
                    if not running.done.is_set():  # nothing may follow a final response: it is read away
                        self._take(alive, running, response)
        except EngineError as error:
            running.fault, running.confirmed = running.fault or error, True
            if alive.call.own and error.code is grpc.StatusCode.UNAVAILABLE:  # e.g. our key opens the engine no longer
                self._driver.broke(running.dispatch.engine)
        except StreamBrokenError:
            if not (running.stopping or running.done.is_set()):  # not by us
                self._driver.broke(running.dispatch.engine)
        except Exception as error:  # of this dispatch alone; the engine may go on with it
            running.fault = running.fault or fault_of(error, running, self._contained)

    def _metadata(self, alive: Alive) -> Metadata:
        """The caller's, except that the engine's spans hang from ours where we make some."""
        metadata = alive.call.metadata
        if self._tracer is None:
            return metadata
        rest = tuple(each for each in metadata if each[0] not in (TRACEPARENT, "tracestate"))
        return (*rest, *(self._contained.run("the tracer", self._tracer.headers, alive.request.id) or ()))

    def _take(self, alive: Alive, running: Dispatched, response: Any) -> None:
        """Take in one response. Raises EngineError if it is an error of the engine."""
        if response is not None:
            raise_if_error(response)
        final = False
        try:
            if response is None:  # bytes that are no message: the engine may go on, so it is to be stopped
                raise_if_error(response)
            final = wire.is_final(response.infer_response)
            if running.fault is None and (tokens := alive.call.receive(response)):
                self._driver.progress(alive, running, tokens)
        except Exception as error:
            running.fault = fault_of(error, running, self._contained)
        if final:
            # A stream that does not end by itself now is ended after a while.
            running.linger = asyncio.get_running_loop().call_later(self._stop_timeout_s, running.stream.cancel)
            self._driver.final(alive, running)
        elif running.fault is not None or alive.call.stop_wanted:
            self._driver.stop(alive)

    async def tell_engine(self, model: str, running: Dispatched) -> None:
        """The dispatch is over: by the engine's final response, or by cancelling the stream when none comes."""
        engine = self._engines[running.dispatch.engine]
        try:
            async with asyncio.timeout(self._stop_timeout_s):
                patience_s = STOP_RETRY_S
                while not running.done.is_set():
                    await engine.stop(model, running.request_id, self._stop_timeout_s)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(patience_s):
                            await running.done.wait()
                    patience_s *= 2
        except (TimeoutError, EngineError, StreamBrokenError):
            self.break_off(running)
        except Exception as error:  # of this stop alone
            self._contained.note(f"a stop to engine {running.dispatch.engine}", error)
            self.break_off(running)

    def break_off(self, running: Dispatched) -> None:
        """End a stream. Its relay ends, and nothing that comes after it counts."""
        running.broken_off = True
        if running.stream is not None:
            running.stream.cancel()
