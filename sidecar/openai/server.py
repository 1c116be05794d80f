"""The HTTP server of the OpenAI API: routes, bounds, and an error object for whatever is refused."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from sidecar.core.errors import SettingsError
from sidecar.driver.driver import Driver
from sidecar.keys import Keyring
from sidecar.offline.item import ItemRules
from sidecar.offline.item_format import CHAT, COMPLETIONS
from sidecar.openai.api_error import ApiError, api_error
from sidecar.openai.completions import Completions
from sidecar.openai.observation import HttpMetrics, end_span
from sidecar.settings.file import ServeSettings
from sidecar.settings.openai import OpenAiSettings
from sidecar.telemetry.faults import FaultLog
from sidecar.telemetry.tracing import Trace, Tracing
from sidecar.tls import Material
from sidecar.triton.tokenizer import Tokens

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Served = Callable[[str, str, int, float], None]  # method, route, status and seconds of a request that is over

logger = logging.getLogger(__name__)
SHUTDOWN_S = 2.0  # for answers that are being written when the sidecar ends
RETRY_AFTER_S = 1.0  # a request ends every few tens of milliseconds
_TRACE = web.RequestKey[Trace | None]("trace", Trace)  # of the request being answered, or None
GONE = 499  # the status, in metrics and spans, of a request whose program went away


class OpenAiServer:
    """A running server."""

    def __init__(
        self,
        settings: OpenAiSettings,
        completions: Completions,
        models: Sequence[str],
        tracing: Tracing | None = None,
        served: Served = lambda _method, _route, _status, _seconds: None,
        tls: Material | None = None,
    ) -> None:
        self._tls = tls
        self._settings = settings
        self._completions = completions
        self._models = models
        self._tracing = tracing
        self._served = served
        self._open = self._held_bytes = 0
        self._faults = FaultLog(logger)
        self._begun = int(time.time())

        @web.middleware
        async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._observed(request, handler)

        app = web.Application(client_max_size=settings.body_bytes_max, middlewares=[observed])
        app.add_routes(
            (
                web.post(CHAT, self._answer(CHAT)),
                web.post(COMPLETIONS, self._answer(COMPLETIONS)),
                web.get("/v1/models", self._list_models),
                web.get("/v1/models/{model:.+}", self._show_model),
            )
        )
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)

    async def start(self) -> None:
        """It listens. Raises SettingsError if the port is taken."""
        host, _, port = self._settings.listen.rpartition(":")
        await self._runner.setup()
        try:
            context = None if self._tls is None else self._tls.server_context()
            await web.TCPSite(self._runner, host.strip("[]"), int(port), ssl_context=context).start()
        except OSError as error:
            await self._runner.cleanup()
            raise SettingsError(f"openai: cannot bind {self._settings.listen}: {error.strerror}") from None

    @property
    def port(self) -> int:
        """Where it listens, also if the settings left it to the system."""
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Nothing listens any more; answers that are being written get a moment."""
        await self._runner.cleanup()

    async def _observed(self, http: web.Request, handler: Handler) -> web.StreamResponse:
        """Each request is counted with its status and duration, and traced."""
        begun_s, status = time.monotonic(), GONE  # what is true if the program goes away meanwhile
        trace = http[_TRACE] = None if self._tracing is None else self._tracing.rpc(dict(http.headers))
        self._open += 1
        try:
            response = await self._answered(http, handler)
            status = response.status
            return response
        finally:
            self._open -= 1
            resource = http.match_info.route.resource
            route = "" if resource is None else resource.canonical
            self._served(http.method, route, status, time.monotonic() - begun_s)
            if self._tracing is not None and trace is not None:
                end_span(self._tracing, trace, http.method, route, status)

    async def _answered(self, http: web.Request, handler: Handler) -> web.StreamResponse:
        """The answer, or the refusal in the API's form."""
        try:
            if self._open > self._settings.requests_max:
                text = f"{self._settings.requests_max} requests are open, as many as may be (openai.requests_max)"
                raise ApiError(429, text, code="rate_limit_exceeded", retry_after_s=RETRY_AFTER_S)
            return await handler(http)
        except ConnectionError:
            raise asyncio.CancelledError from None  # nobody reads what could be said
        except web.HTTPException as error:
            return self._refusal(http, error).response()
        except Exception as error:
            found = api_error(error)
            if found.status == 500:
                self._faults.log("an OpenAI request", error)
            return found.response()

    def _refusal(self, http: web.Request, error: web.HTTPException) -> ApiError:
        """What aiohttp itself refuses."""
        messages = {
            404: f"{http.method} {http.path} is not served",
            405: f"{http.path} is not served by {http.method}",
            413: f"the body exceeds {self._settings.body_bytes_max} bytes (openai.body_bytes_max)",
        }
        return ApiError(error.status, messages.get(error.status, error.reason))

    def _answer(self, url: str) -> Handler:
        async def handler(http: web.Request) -> web.StreamResponse:
            size = min(http.content_length or self._settings.body_bytes_max, self._settings.body_bytes_max)
            if self._held_bytes + size > self._settings.held_bytes_max:
                text = f"requests of {self._held_bytes} bytes wait or run, {size} more are beyond openai.held_bytes_max"
                raise ApiError(429, text, code="rate_limit_exceeded", retry_after_s=RETRY_AFTER_S)
            self._held_bytes += size
            try:
                return await self._completions.answer(http, url, http[_TRACE])
            finally:
                self._held_bytes -= size

        return handler

    async def _list_models(self, _http: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model(each) for each in self._models]})

    async def _show_model(self, http: web.Request) -> web.Response:
        name = http.match_info["model"]
        if name not in self._models:
            text = f"no engine for model {name!r:.80}; known: {list(self._models)}"
            raise ApiError(404, text, code="model_not_found", param="model")
        return web.json_response(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._begun, "owned_by": "backfill-sidecar"}


def build_openai(
    settings: ServeSettings,
    driver: Driver,
    tokens: Tokens | None,
    tracing: Tracing | None,
    registry: CollectorRegistry,
    keyring: Keyring | None = None,
) -> OpenAiServer | None:
    """The server that the settings ask for; it does not run yet. None if they ask for none."""
    if (own := settings.openai) is None or tokens is None:
        return None
    rules = ItemRules(
        tokens_max={each.model: each.tokens_max for each in settings.engines},
        aliases=settings.aliases,
        model_default=own.model_default or settings.engines[0].model,
        item_bytes_max=own.body_bytes_max,
        max_tokens_default=own.max_tokens_default,
    )
    completions = Completions(driver, rules, tokens, tracing, keyring, own.body_timeout_s)
    tls = None if settings.tls.openai is None else Material(settings.tls.openai, "tls.openai")
    return OpenAiServer(own, completions, rules.models, tracing, HttpMetrics(registry).served, tls)
