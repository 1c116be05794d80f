"""An engine in this process: what a Triton answers, without gRPC, so that thousands of cases take seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc.aio

from sidecar.call import Listener, Metadata
from sidecar.core.events import EngineUp
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.driver.driver import Driver
from sidecar.triton import wire
from sidecar.triton.client import EngineClient
from tests.fakes.checked import Checked


class FakeStream:
    """One upstream stream. A test puts responses, an exception to be raised, or EOF into `answers`."""

    def __init__(self, opened: asyncio.Queue[FakeStream], metadata: Metadata) -> None:
        self.request: Any = None
        self.metadata = tuple(metadata)
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = asyncio.Event()
        self._opened = opened

    def input(self, name: str) -> Any:
        return wire.input_values(self.request, name)

    async def write(self, request: Any) -> None:
        self.request = request

    async def done_writing(self) -> None:
        self._opened.put_nowait(self)

    async def read(self) -> Any:
        if self.cancelled.is_set():
            raise asyncio.CancelledError  # as grpc.aio does
        answer = asyncio.ensure_future(self.answers.get())
        gone = asyncio.ensure_future(self.cancelled.wait())
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if self.cancelled.is_set():
                raise asyncio.CancelledError
            if isinstance(found := answer.result(), BaseException):
                raise found
            return found
        finally:
            answer.cancel()
            gone.cancel()

    def cancel(self) -> None:
        self.cancelled.set()

    # ---- what a test answers -----------------------------------------------------------------------------------------

    def tokens(self, *ids: int, final: bool = False) -> None:
        self.answers.put_nowait(answer_of(ids, final=final))
        if final:
            self.close()  # Triton ends the stream: its only request is done

    def end(self) -> None:
        answer = wire.StreamResponse()
        answer.infer_response.parameters[wire.FINAL].bool_param = True
        self.answers.put_nowait(answer)
        self.close()

    def error(self, message: str) -> None:
        self.answers.put_nowait(wire.StreamResponse(error_message=message))

    def close(self) -> None:
        self.answers.put_nowait(grpc.aio.EOF)


def answer_of(ids: Sequence[int], *, final: bool = False) -> Any:
    """A response with these token ids."""
    answer = wire.StreamResponse()
    wire.add_output(answer, "output_ids", "INT32", ids, (1, 1, len(ids)))
    answer.infer_response.parameters[wire.FINAL].bool_param = final
    return answer


class FakeEngine:
    """Opens FakeStreams. `opened` gives each once its request is written; a stop ends the stream of its id."""

    def __init__(self) -> None:
        self.opened: asyncio.Queue[FakeStream] = asyncio.Queue()
        self.streams: list[FakeStream] = []
        self.stopped: list[str] = []
        self.confirms_stops = True

    def open(self, metadata: Metadata = (), *, own: bool = False) -> FakeStream:
        del own
        self.streams.append(FakeStream(self.opened, metadata))
        return self.streams[-1]

    async def stop(self, model: str, request_id: str, timeout_s: float) -> None:
        del model, timeout_s
        self.stopped.append(request_id)
        for stream in self.streams:
            if self.confirms_stops and stream.request is not None and stream.request.id == request_id:
                stream.end()

    async def next(self) -> FakeStream:
        async with asyncio.timeout(5):
            return await self.opened.get()

    async def serve(self, answer: Callable[[FakeStream], Awaitable[None]]) -> None:
        """Answer each stream in its turn, until cancelled."""
        while True:
            await answer(await self.opened.get())


@asynccontextmanager
async def running_driver(
    engine: FakeEngine,
    *,
    scheduler: SchedulerSettings | None = None,
    listeners: Sequence[Listener] = (),
    core: Callable[[SchedulerSettings, Sequence[EngineSettings]], Scheduler] = Scheduler,
    slots: int = 2,
    tokens_max: int = 64,
    stop_timeout_s: float = 2.0,
    **more: Any,
) -> AsyncIterator[Driver]:
    """A driver over one engine that is up. Its books are checked at the end."""
    settings = EngineSettings(name="e0", slots=slots, tokens_max=tokens_max, lost_hold_s=0.0, yield_rows="never")
    decides = core(scheduler or SchedulerSettings(window_ms=0, retry_backoff_s=0.0), [settings])
    checked = Checked(decides)
    driver = Driver(
        decides,
        {"e0": cast(EngineClient, engine)},
        listeners=(*listeners, checked),
        stop_timeout_s=stop_timeout_s,
        **more,
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(driver.run(), name="driver")
        await asyncio.sleep(0)  # it runs
        driver.handle(EngineUp(engine="e0"))
        yield driver
        driver.close()
    checked.check_idle()


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop turn until `holds()`."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - a state, not an event
            await asyncio.sleep(0)
