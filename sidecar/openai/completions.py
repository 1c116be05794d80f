"""`/v1/chat/completions` and `/v1/completions`: online unless the program says `service_tier: "flex"`."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any, Protocol

from aiohttp import web

from sidecar.core.request import Lane, Request
from sidecar.keys import Keyring
from sidecar.offline.item import ItemRules
from sidecar.openai.access import KeyHolder, holder_of
from sidecar.openai.answers import DONE, ApiAnswer, event
from sidecar.openai.api_error import ApiError, api_error
from sidecar.openai.api_request import ApiRequest, read_asked
from sidecar.openai.text_stream import TextStream
from sidecar.telemetry.faults import FaultLog
from sidecar.telemetry.tracing import Trace
from sidecar.token_call import Generated, TokenCall
from sidecar.triton.tokenizer import Tokens

logger = logging.getLogger(__name__)
LARGE_BODY_BYTES = 4096  # read in a thread: tokenising it would hold up the loop for milliseconds


class Generator(Protocol):
    """The driver, as this room sees it. Cancelling the awaiting task cancels the request."""

    @property
    def now_s(self) -> float: ...
    async def generate(self, request: Request, call: TokenCall) -> Generated: ...
    def mint(self, prefix: str) -> str: ...


class Adopter(Protocol):
    """Who makes spans."""

    def adopt(self, request_id: str, trace: Trace) -> None: ...


class Completions:
    """Reads, runs and answers one request after another, any number at once."""

    def __init__(
        self,
        driver: Generator,
        rules: ItemRules,
        tokens: Tokens,
        tracing: Adopter | None = None,
        keyring: Keyring | None = None,
        body_timeout_s: float = 30.0,
    ) -> None:
        """Without a `keyring` whoever reaches the port may send requests, as any tenant."""
        self._keyring = keyring
        self._body_timeout_s = body_timeout_s
        self._driver = driver
        self._rules = rules
        self._tokens = tokens
        self._tracing = tracing
        self._faults = FaultLog(logger)

    async def answer(self, http: web.Request, url: str, trace: Trace | None) -> web.StreamResponse:
        """The answer, complete or as a stream that has ended. Raises ApiError before anything is sent."""
        holder = None if self._keyring is None else holder_of(self._keyring, http.headers.get("Authorization", ""))
        body = await self._body(http)
        arrived_s = self._driver.now_s
        asked = await self._read(body, url, http.headers, holder)
        request = self._request(asked, arrived_s)
        if holder is not None:
            holder.book(request)
        if self._tracing is not None and trace is not None:
            self._tracing.adopt(request.id, trace)
        if asked.stream:
            return await self._streamed(http, asked, request)
        generated = await self._driver.generate(request, asked.item.call)
        return web.json_response(ApiAnswer(asked).whole(self._text(generated), generated))

    async def _body(self, http: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await http.read()
        except TimeoutError:
            text = f"no whole body within {self._body_timeout_s:g} s (openai.body_timeout_s)"
            raise ApiError(408, text, code="request_timeout") from None

    async def _read(self, body: bytes, url: str, headers: Mapping[str, str], holder: KeyHolder | None) -> ApiRequest:
        if holder is not None:
            headers = holder.headers(headers)
            holder.count()
        usual = Lane.ONLINE if holder is None else holder.lane(None)
        id = f"{'chatcmpl' if 'chat' in url else 'cmpl'}-{secrets.token_hex(12)}"
        arguments: Any = (body, url, headers, id, self._rules, self._tokens, usual)
        large = len(body) > LARGE_BODY_BYTES
        asked = await asyncio.to_thread(read_asked, *arguments) if large else read_asked(*arguments)
        if holder is not None:
            holder.lane(asked.lane)
        return asked

    def _request(self, asked: ApiRequest, arrived_s: float) -> Request:
        item = asked.item
        online = asked.lane is Lane.ONLINE
        return Request(
            id=self._driver.mint("h"),
            lane=asked.lane,
            model=item.model,
            arrived_s=arrived_s,
            prompt_tokens=len(item.call.prompt_ids),
            output_tokens_max=item.call.output_tokens_max,
            tenant=item.tenant,
            deadline_s=inf,
            resumable=item.call.resumable and not online,
            splits_prompt=not online,
            prefix_key=item.prefix_key,
        )

    def _text(self, generated: Generated) -> str:
        return self._tokens.decode(generated.output_ids) if generated.text is None else generated.text

    async def _streamed(self, http: web.Request, asked: ApiRequest, request: Request) -> web.StreamResponse:
        """Sends events while the engine generates. What goes wrong after the first is an event, too."""
        text, news = TextStream(self._tokens.decode, asked.item.call.stop_texts), asyncio.Event()

        def tell(ids: Any) -> None:
            text.push(ids)
            news.set()

        running = asyncio.ensure_future(self._driver.generate(request, replace(asked.item.call, tell=tell)))
        running.add_done_callback(lambda _: news.set())
        answer, stream = ApiAnswer(asked), _EventStream(http)
        try:
            while not running.done():
                await news.wait()
                news.clear()
                if piece := text.take():
                    await stream.send(answer.chunk(piece))
            await self._end(stream, answer, asked, running, text)
        finally:
            running.cancel()  # ignored once it is over
        return await stream.end()

    async def _end(
        self,
        stream: _EventStream,
        answer: ApiAnswer,
        asked: ApiRequest,
        running: asyncio.Future[Generated],
        text: TextStream,
    ) -> None:
        try:
            generated = running.result()
        except Exception as error:
            if not stream.begun:
                raise
            await stream.send(event(api_error(error).document()))
            return
        if rest := text.rest(self._text(generated)):
            await stream.send(answer.chunk(rest))
        await stream.send(answer.chunk("", generated))
        if asked.usage:
            await stream.send(answer.usage_chunk(generated))
        await stream.send(DONE)


class _EventStream:
    """The response of one stream, which begins with its first event: until then a status can still be sent."""

    def __init__(self, http: web.Request) -> None:
        self._http = http
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self._response = web.StreamResponse(headers=headers)

    @property
    def begun(self) -> bool:
        """True once something was sent."""
        return self._response.prepared

    async def send(self, data: bytes) -> None:
        """Send an event; waits while its reader does not keep up."""
        if not self.begun:
            await self._response.prepare(self._http)
        await self._response.write(data)

    async def end(self) -> web.StreamResponse:
        """Nothing more follows."""
        await self._response.write_eof()
        return self._response
